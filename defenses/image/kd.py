"""Knowledge distillation on clean images: the control that tells what the adversarial examples of the others are for.

    min_S  alpha * tau^2 * KL(T(x; tau) || S(x; tau)) + (1 - alpha) * CE(S(x), y)

Source: Hinton, Vinyals, Dean: Distilling the knowledge in a neural network (NIPS 2014 workshop), section 2: the factor tau^2
keeps the size of the soft targets' gradients, and the hard labels get the considerably lower weight.
"""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from robustkd.contracts import Defense, FitContext, Target
from robustkd.defenses.training import DistillationParams, Minibatch, Recipe, Teacher, fresh_network, kl, teaching, train
from robustkd.targets import ClassifierTarget


class KDParams(DistillationParams):
    """Parameters of ``kd``."""

    temperature: float = Field(4.0, gt=0, description="tau, of teacher and student")
    alpha: float = Field(0.9, ge=0, le=1, description="weight of the soft labels; the hard ones get the rest")


class KDRecipe(Recipe):
    """Divergence from the teacher on clean images, and some cross entropy."""

    def __init__(self, teacher: Teacher, params: KDParams) -> None:
        self.teacher, self.params = teacher, params

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """alpha * tau^2 * KL(T(x; tau) || S(x; tau)) + (1 - alpha) * CE(S(x), y)."""
        p, tau, logits = self.params, self.params.temperature, target(batch.x)
        soft = kl(self.teacher.clean(batch), logits, teacher_temperature=tau, student_temperature=tau, reduction=p.kl_reduction)
        return p.alpha * tau**2 * soft + (1 - p.alpha) * F.cross_entropy(logits, batch.y), {"loss_soft": soft}


class KD(Defense):
    """A student of a frozen teacher's outputs on clean images."""

    Params = KDParams
    source = "Hinton et al. 2014, arXiv:1503.02531"

    def fit(self, context: FitContext) -> Target:
        """Distil; the epoch is chosen by validation accuracy."""
        p = self.params
        with teaching(context, p.teacher, p) as teacher:
            return train(context, fresh_network(context, p.student, p.student_params), KDRecipe(teacher, p), p)
