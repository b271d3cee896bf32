"""MEAL V2: the mean of several teachers' probabilities and nothing else, with a discriminator that tells student from teachers.

    min_D  BCE(D(z_T), 1) + BCE(D(z_S), 0)                                    z_T the mean of the teachers' logits
    min_S  KL( 1/M sum_m T_m(x) || S(x) ) + w * BCE(D(z_S), 1)

There is no hard label and no weight decay. The discriminator has three layers on logits. In the authors' code student and
discriminator go down the same loss, so that the student helps to tell itself apart; here they oppose each other, as the text has it.

Good for the accuracy of a student of several teachers. The adversary here is a discriminator, not an attacker: no
adversarial example is seen, so none is withstood.

Source: Shen, Savvides: MEAL V2: boosting vanilla ResNet-50 to 80 %+ top-1 accuracy on ImageNet without tricks (2020), section 3. The paper
begins with a trained student; here it starts afresh. w and the optimisers are ours: the authors' code has w = 1, SGD at 1e-4 for a
convolutional discriminator with two logits, and SGD at 0.01 for the student.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.contracts import Defense, FitContext, ModelName, Target, TargetRef
from robustkd.contracts.params import ModelParams
from robustkd.defenses.training import Minibatch, Recipe, Teacher, TrainParams, fresh_network, frozen_teacher, kl, train
from robustkd.defenses.training.auxiliary import AuxiliaryNetwork
from robustkd.defenses.training.networks import seeded_init
from robustkd.lazy import F, nn, torch
from robustkd.targets import ClassifierTarget
from robustkd.targets.ensemble import log_mean_probability

if TYPE_CHECKING:
    from torch import Tensor


class MEALV2Params(TrainParams):
    teachers: tuple[TargetRef, ...] = Field(min_length=1, description="the trained defenses whose probabilities are averaged")
    student: ModelName = Field(description="the student's architecture: a model plug-in")
    student_params: ModelParams = Field(default_factory=dict)
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty: soft labels regularise enough")
    weight: float = Field(0.1, ge=0, description="w, weight of the discriminator in the student's loss")
    discriminator_lr: float = Field(1e-3, gt=0, description="its learning rate (Adam)")
    width: int = Field(64, ge=1, description="its hidden units")


class MEALV2Recipe(Recipe[ClassifierTarget]):
    """Divergence from the mean, and a student that passes for its teachers."""

    def __init__(self, teachers: Sequence[Teacher], discriminator: AuxiliaryNetwork, weight: float) -> None:
        self.teachers, self.weight = teachers, weight
        self.discriminator = self.auxiliary = discriminator

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """A step of the discriminator, then KL + w BCE(D(z_S), 1)."""
        z_t, z_s = torch.stack([teacher.clean(batch) for teacher in self.teachers]).float(), target(batch.x).float()
        told = _bce(self.discriminator(z_t.mean(0)), 1) + _bce(self.discriminator(z_s.detach()), 0)
        self.discriminator.minimise(told, batch.all_reduce)
        soft = kl(log_mean_probability(z_t), z_s, reduction="batch")
        fooled = _bce(self.discriminator(z_s), 1)
        return soft + self.weight * fooled, {"loss_soft": soft, "loss_discriminator": told}


def _bce(scores: Tensor, truth: int) -> Tensor:
    return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, truth))


class MEALV2(Defense):
    """A student of several teachers' mean."""

    Params = MEALV2Params
    source = "Shen and Savvides 2020, arXiv:2009.08453"

    def fit(self, context: FitContext) -> Target:
        """Distil; the epoch is chosen by validation accuracy."""
        p, classes = self.params, context.num_classes
        with seeded_init(context, "discriminator"):
            layers = (nn.Linear(classes, p.width), nn.ReLU(), nn.Linear(p.width, p.width), nn.ReLU(), nn.Linear(p.width, 1))
            discriminator = AuxiliaryNetwork(nn.Sequential(*layers).to(context.device), p.discriminator_lr)
        with ExitStack() as stack:
            teachers = [stack.enter_context(frozen_teacher(context, name, p)) for name in p.teachers]
            student = fresh_network(context, p.student, p.student_params)
            return train(context, student, MEALV2Recipe(teachers, discriminator, p.weight), p)
