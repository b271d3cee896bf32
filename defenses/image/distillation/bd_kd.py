"""BD-KD: balancing the divergences for online knowledge distillation. Teacher and student learn together, each from the other.

    min_S  CE(S(x), y) + mean_i [ f_i * KL(T || S) + r_i * KL(S || T) ]          T is a constant
    min_T  CE(T(x), y) + KL(S || T)                                              S is a constant

    (f_i, r_i) = (1, delta)  where the student is less certain than the teacher, H(S(x_i)) > H(T(x_i)): the reverse divergence
                             seeks one mode and sharpens the student;
                 (delta, 1)  elsewhere: the forward one makes it cover what the teacher holds possible.

Only the student is deployed. The teacher starts as fresh as the student and is trained by the same optimiser.

Good for calibrated students where no trained teacher exists; both networks are paid for. No adversarial example is seen, so
none is withstood.

Source: Amara et al.: BD-KD: balancing the divergences for online knowledge distillation (2022). The value of delta is ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from robustkd.contracts import Defense, FitContext, ModelName, Target
from robustkd.contracts.params import ModelParams
from robustkd.defenses.training import Minibatch, Recipe, TrainParams, entropy, fresh_network, kl, train
from robustkd.defenses.training.auxiliary import with_auxiliary
from robustkd.lazy import F
from robustkd.targets import ClassifierTarget

if TYPE_CHECKING:
    from torch import Tensor


class BDKDParams(TrainParams):
    """Parameters of ``bd-kd``. The paper trains on CIFAR with ``augment: crop-flip``."""

    student: ModelName = Field(description="the student's architecture: a model plug-in")
    student_params: ModelParams = Field(default_factory=dict)
    teacher_model: ModelName = Field(description="the architecture of the teacher that learns along")
    teacher_params: ModelParams = Field(default_factory=dict)
    delta: float = Field(
        2.0, ge=1, description="weight of the divergence that moves the student's certainty towards the teacher's"
    )


def balanced(student: Tensor, teacher: Tensor, delta: float) -> Tensor:
    """The student's weighed divergences, from (B, K) logits; ``teacher`` is a constant."""
    unsure = entropy(student.detach()) > entropy(teacher)
    forward, reverse = kl(teacher, student, reduction="none"), kl(student, teacher, reduction="none")
    return (forward * (~unsure * (delta - 1) + 1) + reverse * (unsure * (delta - 1) + 1)).mean()


class BDKDRecipe(Recipe[ClassifierTarget]):
    """The sum of the losses of student and teacher, which are trained together."""

    def __init__(self, delta: float) -> None:
        self.delta = delta

    def loss(self, target: Any, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of both losses: neither network has a part in the other's gradient."""
        student, teacher = target(batch.x), target.module.parts["teacher"](batch.x)
        loss_student = F.cross_entropy(student, batch.y) + balanced(student, teacher.detach(), self.delta)
        loss_teacher = F.cross_entropy(teacher, batch.y) + kl(student.detach(), teacher, reduction="batch")
        return loss_student + loss_teacher, {"loss_student": loss_student, "loss_teacher": loss_teacher}


class BDKD(Defense):
    """A student that learns together with its teacher."""

    Params = BDKDParams
    source = "Amara et al. 2022, arXiv:2212.12965"

    def fit(self, context: FitContext) -> Target:
        """Train both; the epoch is chosen by the student's validation accuracy."""
        p = self.params
        student = fresh_network(context, p.student, p.student_params)
        teacher = fresh_network(context, p.teacher_model, p.teacher_params, role="teacher")
        train(context, with_auxiliary(student, teacher=teacher.module), BDKDRecipe(p.delta), p)
        return student
