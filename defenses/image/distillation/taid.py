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

from collections.abc import Mapping
from typing import TYPE_CHECKING

from robustkd.contracts import FitContext
from robustkd.defenses.training import Distillation, DistillationRecipe, Minibatch, Prepared, StudentParams, Teacher, kl
from robustkd.defenses.training.batches import epoch_order
from robustkd.defenses.training.interpolation import InterpolationParams, MovingShare
from robustkd.targets import ClassifierTarget

if TYPE_CHECKING:
    from torch import Tensor


class TAIDParams(InterpolationParams, StudentParams):
    """Parameters of ``taid``."""


class TAIDRecipe(MovingShare, DistillationRecipe):
    """The moving target.

    Args:
        teacher, params: see ``DistillationRecipe``.
        steps: N.
    """

    state = ("t", "trend", "previous", "done")

    def __init__(self, teacher: Teacher, params: TAIDParams, steps: int) -> None:
        super().__init__(teacher, params)
        self.begin(params, steps)

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The divergence of the student from the interpolated logits."""
        student = target(batch.x)
        between = (1 - self.t) * student.detach() + self.t * self.teacher.clean(batch)
        return kl(between, student, reduction="batch"), {"teacher_share": student.new_tensor(self.t)}

    def after_step(self, metrics: Mapping[str, float]) -> None:
        """Update the trend m and the teacher's share t."""
        self.advance(metrics["train_loss"])


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
