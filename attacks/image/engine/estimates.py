"""Gradients estimated from scores: finite differences along random directions, forward passes only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from robustkd.attacks.image.engine.ascent import AttackState, GradientEstimator
from robustkd.attacks.image.engine.oracle import Objective, Oracle
from robustkd.contracts.random import SampleRng
from robustkd.contracts.target import Bounds
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


def with_room(x: Tensor, reach: Tensor, bounds: Bounds) -> Tensor:
    """``x``, moved in just so far that all within ``reach`` of it, a positive number for each of its values, lies in the range.

    A black box takes images only. Where a pixel is at its bound, a query that was cut back would say nothing about it.
    """
    low, high = bounds
    return torch.minimum(torch.maximum(x, low + reach), high - reach)


@dataclass(frozen=True)
class FiniteDifferences:
    """mean over u of (J(x + radius u) - J(x - radius u)) / (2 radius) * u.

    ``x`` makes room for both points in the pixel range (``with_room``).

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
            step = self.radius * u
            inside = with_room(x, step.abs(), bounds)
            above, below = (objective(oracle.logits((inside + side * step).clamp(*bounds), rows), rows) for side in (1, -1))
            total += (above - below).view(-1, *([1] * (x.ndim - 1))) * u
        return total / (2 * self.radius * self.pairs)


@dataclass(frozen=True)
class Remembered:
    """g_t = momentum g_{t-1} + (1 - momentum) estimate_t: what few directions tell adds up from step to step.

    Attributes:
        estimator: makes the estimate of a step.
        momentum: 0 to 1, the share of what was known before; the first estimate is taken whole.
    """

    estimator: GradientEstimator
    momentum: float

    def __call__(self, oracle: Oracle, state: AttackState, objective: Objective, t: int) -> Tensor:
        """(A, *shape): the passes of the estimator."""
        estimate = self.estimator(oracle, state, objective, t)
        if t:
            estimate = torch.lerp(estimate, state.memory["estimate"], self.momentum)
        state.memory["estimate"] = estimate
        return estimate
