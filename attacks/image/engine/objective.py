"""A loss bound to the samples of a batch: away from the labels, or towards the goals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustkd.attacks.image.engine.losses import Loss, LossName, targeted, untargeted
from robustkd.attacks.image.engine.oracle import Objective
from robustkd.contracts import Batch
from robustkd.contracts.attack import LossFamily

if TYPE_CHECKING:
    from torch import Tensor

FAMILY_OF: dict[str, LossFamily] = {"ce": "cross-entropy", "margin": "margin", "dlr": "margin"}


def for_batch(loss: LossName, batch: Batch) -> Objective:
    """The objective of an attack on ``batch``: targeted where the batch has goals."""
    return bound(untargeted(loss), batch.labels) if batch.goals is None else bound(targeted(loss), batch.goals)


def bound(loss: Loss, classes: Tensor) -> Objective:
    """``loss`` with respect to the (B,) ``classes`` of a batch."""

    def objective(logits: Tensor, rows: Tensor) -> Tensor:
        return loss(logits, classes[rows])

    return objective
