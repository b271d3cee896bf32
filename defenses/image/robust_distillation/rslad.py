"""RSLAD: robust soft label adversarial distillation. The robust teacher's outputs replace every hard label, in the inner loss too.

    x~ = argmax_{x' in ball(x)} KL(T(x) || S(x'))                           from x + 0.001 * N(0, 1)
    min_S  w * KL(T(x) || S(x~)) + (1 - w) * KL(T(x) || S(x)),   w = 5/6

Good where the robust teacher is good. Where that one is hardly better than what the student reaches alone, soft labels add
little: in ``robust-distillation-small`` it stays 3.7 points behind ``pgd-at``.

Source: Zi, Zhao, Ma, Jiang: Revisiting adversarial robustness distillation: robust soft labels make student better (ICCV 2021),
equation 5. The authors' code averages the divergence over batch and classes, and multiplies it by 10 on CIFAR-100:
KL / 10 on both, which is the default (``kl_reduction: tenth``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from robustkd.defenses.training import Minibatch, RobustDistillation, RobustDistillationParams, TeacherInner, TeacherRecipe, kl
from robustkd.defenses.training.adversarial import KLReduction
from robustkd.defenses.training.inner import InnerLoss, StartParam
from robustkd.defenses.training.params import EpochsParam, WeightDecayParam
from robustkd.targets import ClassifierTarget

if TYPE_CHECKING:
    from torch import Tensor


class RSLADInner(TeacherInner):
    """The inner maximisation with the paper's loss and start."""

    start: StartParam = "noise"
    loss: InnerLoss = Field("kl-teacher-clean", description="what is climbed: cross entropy, or a divergence of outputs")


class RSLADParams(RobustDistillationParams):
    """Parameters of ``rslad``. The paper trains on CIFAR with ``augment: crop-flip``."""

    milestone_fractions: ClassVar[tuple[float, ...]] = (215 / 300, 260 / 300, 285 / 300)

    epochs: EpochsParam = 300
    weight_decay: WeightDecayParam = 2e-4
    inner: RSLADInner = Field(default_factory=RSLADInner, description="the examples of the adversarial branch")
    weight: float = Field(5 / 6, ge=0, le=1, description="w of the adversarial branch; the clean one gets the rest")
    kl_reduction: KLReduction = Field("tenth", description="as the authors' code: KL / 10 on any data; batch is the definition")


class RSLADRecipe(TeacherRecipe):
    """Divergence from T(x), on x~ and on x."""

    def inner(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, ...]:
        """The adversarial examples x~ and the teacher's logits on the clean images, T(x)."""
        return self.adversary(target, batch, self.teacher), self.teacher.clean(batch)

    def outer(self, target: ClassifierTarget, batch: Minibatch, inner: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """w * KL(T(x) || S(x~)) + (1 - w) * KL(T(x) || S(x))."""
        x_adv, soft = inner
        w, reduction = self.params.weight, self.params.kl_reduction
        loss_adv, loss_nat = (kl(soft, target(at), reduction=reduction) for at in (x_adv, batch.x))
        return w * loss_adv + (1 - w) * loss_nat, {"loss_adv": loss_adv, "loss_nat": loss_nat}


class RSLAD(RobustDistillation):
    """A student of its teacher's soft labels alone."""

    Params = RSLADParams
    version = "2"  # 1 took the mean divergence over the batch by default
    recipe = RSLADRecipe
    source = "Zi et al. 2021, arXiv:2108.07969"
    learns_soft_labels = True  # of the labels it takes none at all
