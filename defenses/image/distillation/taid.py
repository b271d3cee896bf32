"""TAID: temporally adaptive interpolated distillation. The target moves from the student's own answer to the teacher's.

    min_S  J = KL( softmax((1 - t) * sg(z_S) + t * z_T)  ||  softmax(z_S) )

and after each step n of N, with sg a constant and J' the loss of the step before:

    m <- beta * m + (1 - beta) * (J' - J) / J'
    t <- min( t_end, max( t_start + (t_end - t_start) * n / N,  t + alpha * sigmoid(m) * (1 - t) ) )

Where the loss falls, t hurries ahead of its straight line. There is no hard label.

Good where a student is far smaller than its teacher: the target is never far off. No adversarial example is seen, so none is
withstood.

Source: Shing et al.: TAID: temporally adaptive interpolated distillation (ICLR 2025), equation 3 and algorithm 1.
Theirs is a method for language models, whose tokens each have such a divergence; here it is the loss of an image classifier, which has
one answer an image. So their figures do not carry over. t, alpha and beta are theirs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.contracts import FitContext
from robustkd.defenses.training import Distillation, DistillationRecipe, Minibatch, Prepared, StudentParams, Teacher, kl
from robustkd.defenses.training.batches import epoch_order
from robustkd.targets import ClassifierTarget

if TYPE_CHECKING:
    from torch import Tensor


class TAIDParams(StudentParams):
    t_start: float = Field(0.4, ge=0, lt=1, description="the teacher's share at the start")
    t_end: float = Field(1.0, gt=0, le=1, description="its share at the end")
    step: float = Field(5e-4, ge=0, le=1, description="alpha, how far it may hurry ahead in a step")
    momentum: float = Field(0.99, ge=0, lt=1, description="beta, of the mean relative change of the loss")


class TAIDRecipe(DistillationRecipe):
    """The moving target.

    Args:
        teacher, params: see ``DistillationRecipe``.
        steps: N.

    Attributes:
        t: the teacher's share.
        trend: m.
        previous: J', None before the first step.
        done: n.
    """

    state = ("t", "trend", "previous", "done")

    def __init__(self, teacher: Teacher, params: TAIDParams, steps: int) -> None:
        super().__init__(teacher, params)
        self.steps = steps
        self.t, self.trend, self.done = params.t_start, 0.0, 0
        self.previous: float | None = None

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The divergence of the student from the interpolated logits."""
        student = target(batch.x)
        between = (1 - self.t) * student.detach() + self.t * self.teacher.clean(batch)
        return kl(between, student, reduction="batch"), {"teacher_share": student.new_tensor(self.t)}

    def after_step(self, metrics: Mapping[str, float]) -> None:
        """Update the trend m and the teacher's share t."""
        p, loss = self.params, metrics["train_loss"]
        self.done += 1
        if self.previous is not None:
            change = (self.previous - loss) / max(self.previous, 1e-15)
            self.trend = p.momentum * self.trend + (1 - p.momentum) * change
            line = p.t_start + (p.t_end - p.t_start) * self.done / self.steps
            self.t = min(p.t_end, max(line, self.t + p.step * (1 - self.t) / (1 + math.exp(-self.trend))))
        self.previous = loss


class TAID(Distillation):
    """A student of a teacher that comes to meet it."""

    Params = TAIDParams
    recipe = TAIDRecipe
    source = "Shing et al. 2025, arXiv:2501.16937"

    def prepare(self, context: FitContext, teacher: Teacher, student: ClassifierTarget) -> Prepared:
        """Count the steps of the whole training."""
        p = self.params
        steps = p.epochs * len(epoch_order(len(context.train), p.batch_size, context.seed, 0))
        return TAIDRecipe(teacher, p, steps), student
