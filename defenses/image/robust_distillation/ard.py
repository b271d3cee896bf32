"""ARD: adversarially robust distillation. The student answers on x~ as its teacher answers on x.

    x~ = argmax_{x' in ball(x)} CE(S(x'), y)                                          from a uniform point
    min_S  alpha * tau^2 * KL(T(x; tau) || S(x~; tau)) + (1 - alpha) * CE(S(x), y)

Good where a robust teacher exists and the student is small. In ``robust-distillation-small`` it keeps 55.1 %, ``rslad`` 58.1
% and ``iad`` 58.9 %.

Source: Goldblum et al.: Adversarially robust distillation (AAAI 2020), algorithm 1. The authors' code averages the divergence over
batch and classes, and so does the default (``kl_reduction: batch-and-class``); the paper has its mean over the batch (``batch``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.defenses.training import Minibatch, RobustDistillation, RobustDistillationParams, TeacherRecipe, kl
from robustkd.defenses.training.adversarial import KLReduction
from robustkd.defenses.training.params import WeightDecayParam
from robustkd.lazy import F
from robustkd.targets import ClassifierTarget

if TYPE_CHECKING:
    from torch import Tensor


class ARDParams(RobustDistillationParams):
    """Parameters of ``ard``. The paper trains on CIFAR with ``augment: crop-flip``."""

    weight_decay: WeightDecayParam = 2e-4
    temperature: float = Field(30.0, gt=0, description="tau, of teacher and student")
    alpha: float = Field(1.0, ge=0, le=1, description="weight of the soft labels; clean cross entropy gets the rest")
    kl_reduction: KLReduction = Field("batch-and-class", description="as the authors' code: KL / K; batch is the definition")


class ARDRecipe(TeacherRecipe):
    """Divergence of S(x~) from T(x), and some cross entropy on x."""

    def inner(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, ...]:
        """The adversarial examples x~ and the teacher's logits on the clean images, T(x)."""
        return self.adversary(target, batch, self.teacher), self.teacher.clean(batch)

    def outer(self, target: ClassifierTarget, batch: Minibatch, inner: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """alpha * tau^2 * KL(T(x; tau) || S(x~; tau)) + (1 - alpha) * CE(S(x), y)."""
        x_adv, soft = inner
        p, tau = self.params, self.params.temperature
        loss_adv = kl(soft, target(x_adv), teacher_temperature=tau, student_temperature=tau, reduction=p.kl_reduction)
        loss = p.alpha * tau**2 * loss_adv
        if p.alpha < 1:
            loss = loss + (1 - p.alpha) * F.cross_entropy(target(batch.x), batch.y)
        return loss, {"loss_adv": loss_adv}


class ARD(RobustDistillation):
    """A student that matches its teacher's clean outputs on adversarial images."""

    Params = ARDParams
    version = "2"  # 1 took the mean divergence over the batch by default
    recipe = ARDRecipe
    source = "Goldblum et al. 2020, arXiv:1905.09747"
