"""A loss bound to the samples of a batch: away from the labels, or towards the goals."""

from __future__ import annotations

from types import FunctionType
from typing import TYPE_CHECKING

from robustkd.attacks.image.engine import losses, slopes
from robustkd.attacks.image.engine.losses import Loss, LossName, targeted, untargeted
from robustkd.attacks.image.engine.oracle import Objective, ObjectiveWithSlope, OfRows
from robustkd.contracts import Batch
from robustkd.contracts.attack import LossFamily

if TYPE_CHECKING:
    from torch import Tensor

FAMILY_OF: dict[str, LossFamily] = {"ce": "cross-entropy", "margin": "margin", "dlr": "margin"}


_SLOPES: dict[Loss, slopes.WithSlope] = {
    losses.cross_entropy: slopes.cross_entropy,
    losses.margin: slopes.margin,
    losses.dlr: slopes.dlr,
    losses.scale_free: slopes.scale_free,
    losses.scale_free_towards: slopes.scale_free_towards,
    targeted("ce"): slopes.targeted_cross_entropy,
    targeted("margin"): slopes.targeted_margin,
    targeted("dlr"): slopes.targeted_dlr,
}


class Bound(ObjectiveWithSlope):
    """A loss with respect to the classes of a batch, whose gradient has a closed form (``slopes``).

    Args:
        loss: one with an entry in ``slopes``.
        classes: (B,) one of each sample.
    """

    def __init__(self, loss: Loss, classes: Tensor) -> None:
        self._loss, self._slope, self._classes = loss, _SLOPES[loss], OfRows(classes)

    def __call__(self, logits: Tensor, rows: Tensor) -> Tensor:
        """(A,) values, with a graph where the logits have one."""
        return self._loss(logits, self._classes(rows))

    def with_slope(self, logits: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(A,) values and (A, K) gradients."""
        return self._slope(logits, self._classes(rows))


def for_batch(loss: LossName, batch: Batch) -> Objective:
    """The objective of an attack on ``batch``: targeted where the batch has goals."""
    return bound(untargeted(loss), batch.labels) if batch.goals is None else bound(targeted(loss), batch.goals)


def bound(loss: Loss, classes: Tensor) -> Objective:
    """``loss`` with respect to the (B,) ``classes`` of a batch."""
    if isinstance(loss, FunctionType) and loss in _SLOPES:
        return Bound(loss, classes)

    def objective(logits: Tensor, rows: Tensor) -> Tensor:
        return loss(logits, classes[rows])

    return objective
