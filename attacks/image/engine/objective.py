"""A loss bound to the samples of a batch: away from the labels, or towards the goals."""

from __future__ import annotations

from types import FunctionType
from typing import TYPE_CHECKING

from typing_extensions import override

from robustkd.attacks.image.engine import loss_gradients, losses
from robustkd.attacks.image.engine.losses import Loss, LossName, targeted, untargeted
from robustkd.attacks.image.engine.oracle import Objective, ObjectiveWithGradient, OfRows
from robustkd.contracts import Attack, Batch
from robustkd.contracts.attack import LossFamily

if TYPE_CHECKING:
    from torch import Tensor

_FAMILY_OF: dict[str, LossFamily] = {"ce": "cross-entropy", "margin": "margin", "dlr": "margin"}


class ChosenLoss(Attack):
    """An attack whose parameter ``loss`` chooses what it maximizes."""

    @property
    @override
    def loss_family(self) -> LossFamily:
        return _FAMILY_OF[self.params.loss]


_GRADIENTS: dict[Loss, loss_gradients.ValueAndGradient] = {
    losses.cross_entropy: loss_gradients.cross_entropy,
    losses.margin: loss_gradients.margin,
    losses.dlr: loss_gradients.dlr,
    losses.scale_free: loss_gradients.scale_free,
    losses.scale_free_towards: loss_gradients.scale_free_towards,
    targeted("ce"): loss_gradients.targeted_cross_entropy,
    targeted("margin"): loss_gradients.targeted_margin,
    targeted("dlr"): loss_gradients.targeted_dlr,
}


_GRADIENTS_ALONE: dict[Loss, Loss] = {
    losses.cross_entropy: loss_gradients.gradient_of_cross_entropy,
    targeted("ce"): loss_gradients.gradient_of_targeted_cross_entropy,
}
"""Those that take fewer kernels without the value."""


class Bound(ObjectiveWithGradient):
    """A loss with respect to the classes of a batch, whose gradient has a closed form (``loss_gradients``).

    Args:
        loss: one with an entry in ``loss_gradients``.
        classes: (B,) one of each sample.
    """

    def __init__(self, loss: Loss, classes: Tensor) -> None:
        self._loss, self._value_and_grad, self._classes = loss, _GRADIENTS[loss], OfRows(classes)
        self._gradient = _GRADIENTS_ALONE.get(loss)

    def __call__(self, logits: Tensor, rows: Tensor) -> Tensor:
        """(A,) values, with a graph where the logits have one."""
        return self._loss(logits, self._classes(rows))

    def value_and_grad(self, logits: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(A,) values and (A, K) gradients."""
        return self._value_and_grad(logits, self._classes(rows))

    def gradient(self, logits: Tensor, rows: Tensor) -> Tensor:
        """(A, K) gradients."""
        if self._gradient is None:
            return self._value_and_grad(logits, self._classes(rows))[1]
        return self._gradient(logits, self._classes(rows))


def for_batch(loss: LossName, batch: Batch) -> Objective:
    """The objective of an attack on ``batch``: targeted where the batch has goals."""
    return bound(untargeted(loss), batch.labels) if batch.goals is None else bound(targeted(loss), batch.goals)


def bound(loss: Loss, classes: Tensor) -> Objective:
    """``loss`` with respect to the (B,) ``classes`` of a batch."""
    if isinstance(loss, FunctionType) and loss in _GRADIENTS:
        return Bound(loss, classes)

    def objective(logits: Tensor, rows: Tensor) -> Tensor:
        return loss(logits, classes[rows])

    return objective
