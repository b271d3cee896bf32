"""AdaAD: adaptive adversarial distillation. x~ is where student and teacher disagree most, and the teacher moves with it.

    x~ = argmax_{x' in ball(x)} KL(T(x') || S(x'))         from x + 0.001 * N(0, 1); T is differentiated as well
    min_S  l * KL(T(x~) || S(x~)) + (1 - l) * KL(T(x) || S(x)),   l = 1

Good where the teacher is good on adversarial images too. Its inner steps differentiate the teacher, which costs the more the
larger that one is.

Source: Huang et al.: Boosting accuracy and robustness of student models via adaptive adversarial distillation (CVPR 2023).
The authors' code averages the divergence over batch and classes on CIFAR-10 (``kl_reduction: batch-and-class``, the
default), over the batch alone on CIFAR-100 (set ``batch`` there).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.defenses.training import Minibatch, RobustDistillation, RobustDistillationParams, TeacherInner, TeacherRecipe, kl
from robustkd.defenses.training.adversarial import KLReduction
from robustkd.defenses.training.inner import InnerLoss, StartParam
from robustkd.targets import ClassifierTarget

if TYPE_CHECKING:
    from torch import Tensor


class AdaADInner(TeacherInner):
    """The inner maximisation with the paper's loss and start."""

    start: StartParam = "noise"
    loss: InnerLoss = Field("kl-teacher-adv", description="what is climbed: cross entropy, or a divergence of outputs")


class AdaADParams(RobustDistillationParams):
    """Parameters of ``adaad``. The paper trains on CIFAR with ``augment: crop-flip``."""

    inner: AdaADInner = Field(default_factory=AdaADInner, description="the examples of the adversarial branch")
    weight: float = Field(1.0, ge=0, le=1, description="l of the adversarial branch; the clean one gets the rest")
    kl_reduction: KLReduction = Field(
        "batch-and-class", description="as the authors' code on CIFAR-10: KL / K; batch, the definition, is theirs on CIFAR-100"
    )


class AdaADRecipe(TeacherRecipe):
    """Divergence from the teacher where it is: on x~, and with l < 1 on x."""

    def inner(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, ...]:
        """The adversarial examples x~ and the teacher's logits on them, T(x~)."""
        x_adv = self.adversary(target, batch, self.teacher)
        return x_adv, self.teacher(x_adv)

    def outer(self, target: ClassifierTarget, batch: Minibatch, inner: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """l * KL(T(x~) || S(x~)) + (1 - l) * KL(T(x) || S(x))."""
        x_adv, soft = inner
        share, reduction = self.params.weight, self.params.kl_reduction
        loss_adv = kl(soft, target(x_adv), reduction=reduction)
        loss = share * loss_adv
        if share < 1:
            loss = loss + (1 - share) * kl(self.teacher.clean(batch), target(batch.x), reduction=reduction)
        return loss, {"loss_adv": loss_adv}


class AdaAD(RobustDistillation):
    """A student taught where it differs most from its teacher."""

    Params = AdaADParams
    version = "2"  # 1 took the mean divergence over the batch by default
    recipe = AdaADRecipe
    source = "Huang et al. 2023 (CVPR)"
