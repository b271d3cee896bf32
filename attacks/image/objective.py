"""A loss bound to the samples of a batch: away from the labels, or towards the goals."""

from __future__ import annotations

from torch import Tensor

from robustkd.attacks.image.losses import LossName, targeted, untargeted
from robustkd.attacks.oracle import Objective
from robustkd.contracts import Batch
from robustkd.contracts.attack import LossFamily

FAMILY_OF: dict[str, LossFamily] = {"ce": "cross-entropy", "margin": "margin", "dlr": "margin"}


def for_batch(loss: LossName, batch: Batch) -> Objective:
    """The objective of an attack on ``batch``: targeted where the batch has goals."""
    function = untargeted(loss) if batch.goals is None else targeted(loss)
    classes = batch.labels if batch.goals is None else batch.goals

    def objective(logits: Tensor, rows: Tensor) -> Tensor:
        return function(logits, classes[rows])

    return objective
