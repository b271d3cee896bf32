"""Gradients estimated from scores: finite differences along random directions, forward passes only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from robustkd.attacks.image.engine.ascent import AttackState
from robustkd.attacks.image.engine.oracle import Objective, Oracle
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

Draw: TypeAlias = "Callable[[SampleRng, Tensor], Tensor]"
"""Random directions like a tensor, each sample's from its own stream."""


def gaussian(rng: SampleRng, like: Tensor) -> Tensor:
    """A direction of standard normal entries, in the shape of ``like``."""
    return rng.normal(like.shape[1:], dtype=like.dtype)


def rademacher(rng: SampleRng, like: Tensor) -> Tensor:
    """A direction of entries +1 and -1, in the shape of ``like``."""
    return (1 - 2 * rng.integers(like.shape[1:], 2)).to(like.dtype)


@dataclass(frozen=True)
class FiniteDifferences:
    """mean over u of (J(x + radius u) - J(x - radius u)) / (2 radius) * u.

    What leaves the pixel range is cut back into it: a black box takes images only.

    Attributes:
        pairs: how many directions u; twice as many forward passes.
        radius: how far to look.
        draw: the directions.
    """

    rng: SampleRng
    pairs: int
    radius: float
    draw: Draw

    def __call__(self, oracle: Oracle, state: AttackState, objective: Objective, t: int) -> Tensor:
        """(A, *shape): ``2 * pairs`` forward passes."""
        x, rows, bounds = state.x, state.rows, state.ball.bounds
        draws = self.rng.fork(t).select(rows)
        total = torch.zeros_like(x)
        for _ in range(self.pairs):
            u = state.ball.along(self.draw(draws, x))
            above, below = (
                objective(oracle.logits((x + side * self.radius * u).clamp(*bounds), rows), rows) for side in (1, -1)
            )
            total += (above - below).view(-1, *([1] * (x.ndim - 1))) * u
        return total / (2 * self.radius * self.pairs)
