"""Knowledge distillation on clean images: the control that tells what the adversarial examples of the others are for.

    min_S  alpha * tau^2 * KL(T(x; tau) || S(x; tau)) + (1 - alpha) * CE(S(x), y)

Good as a control. A robust teacher makes no robust student this way: in ``robust-distillation-small`` it keeps 25.0 % in the
worst case where ``ard`` keeps 55.1 %.

Source: Hinton, Vinyals, Dean: Distilling the knowledge in a neural network (NIPS 2014 workshop), section 2: the factor tau^2
keeps the size of the soft targets' gradients, and the hard labels get the considerably lower weight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.defenses.training import Distillation, DistillationParams, DistillationRecipe, Minibatch, kl
from robustkd.targets import ClassifierTarget

if TYPE_CHECKING:
    from torch import Tensor


class KDParams(DistillationParams):
    temperature: float = Field(4.0, gt=0, description="tau, of teacher and student")
    alpha: float = Field(0.9, ge=0, le=1, description="weight of the soft labels; the hard ones get the rest")


class KDRecipe(DistillationRecipe):
    """Divergence from the teacher on clean images, and some cross entropy."""

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """alpha * tau^2 * KL(T(x; tau) || S(x; tau)) + (1 - alpha) * CE(S(x), y)."""
        p, tau, logits = self.params, self.params.temperature, target(batch.x)
        soft = kl(self.teacher.clean(batch), logits, teacher_temperature=tau, student_temperature=tau, reduction=p.kl_reduction)
        return p.alpha * tau**2 * soft + (1 - p.alpha) * batch.cross_entropy(logits), {"loss_soft": soft}


class KD(Distillation):
    """A student of a frozen teacher's outputs on clean images."""

    Params = KDParams
    recipe = KDRecipe
    source = "Hinton et al. 2014, arXiv:1503.02531"
    learns_soft_labels = True
