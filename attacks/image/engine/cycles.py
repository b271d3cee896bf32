"""Iterates that repeat: steps of a fixed size from a point that was met before lead to the points that followed it then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from robustkd.attacks.image.engine.ascent import AttackState
from robustkd.contracts import Batch
from robustkd.contracts.params import AddedLater
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

StopAtCycle = Annotated[
    bool,
    AddedLater(),
    Field(description="spare a sample whose iterates repeat the steps that are left; not of targets that draw random numbers"),
]
"""A parameter type: whether ``EarlyStopAtCycle`` is asked for."""
_EVERY = 4  # steps between two looks; a cycle is seen where its length divides the steps since the point it is compared with


@dataclass(frozen=True)
class EarlyStopAtCycle:
    """Lets a sample leave when an iterate is equal to an earlier one, bit by bit: all that follows would repeat.

    For updates that depend on nothing but the point and its gradient, and targets that answer the same each time. What would repeat was
    evaluated before, so the best point is the same as without it (but for rounding, where a network's answers depend on the batch).

    An iterate is compared with the one of a step that is a power of two (Brent's algorithm), so one earlier point of each sample is kept.

    Source: Doldo et al. 2025, arXiv:2503.19347.

    Attributes:
        steps: the steps of an attempt.
        skipped: (B,) int64, to which the passes are added that each sample would have taken.
    """

    steps: int
    skipped: Tensor

    @classmethod
    def of(cls, batch: Batch, steps: int) -> EarlyStopAtCycle | None:
        """None where the target draws random numbers: the same point is then worth another look."""
        return cls(steps, torch.zeros_like(batch.labels)) if batch.draws is None else None

    def __call__(self, state: AttackState, t: int) -> Tensor | None:
        """(A,) bool: the samples that are where they were before; None where nobody looked."""
        if t == 0 or t % _EVERY or t == self.steps:
            return None
        repeats = None
        if (earlier := state.memory.get("earlier")) is not None:
            repeats = (state.x == earlier).flatten(1).all(1) & ~state.broken
            self.skipped[state.rows[repeats]] += 2 * (self.steps - t) - 1  # the gradient of this step is there
        if t.bit_count() == 1:
            state.memory["earlier"] = state.x
        return repeats
