"""Activation functions: between which two lines they lie on an interval.

A piecewise linear one (ReLU) lies below its chord and above either of its two lines; of these the one is taken that leaves less area,
which is CROWN's adaptive choice.

A smooth one lies between two parallels of its chord. How far they have to be moved is read from a grid of N + 1 points: between
two of them f(x) - k x can exceed the higher one by no more than c h^2 / 8, where c bounds |f''| and h is the step of the grid.

Sources: Zhang et al.: Efficient neural network robustness certification with general activation functions (CROWN, NeurIPS 2018),
section 3.2 for the lines of ReLU; the parallels and their grid are ours.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from robustkd.certification.operation import Call, Interval, Operation

_STEPS = 32
_NARROW = 1e-6  # intervals on which a chord's slope is mostly rounding


@dataclass(frozen=True)
class Lines:
    """``slope * x + offset`` below and above a function, on an interval for each value."""

    lower_slope: Tensor
    lower_offset: Tensor
    upper_slope: Tensor
    upper_offset: Tensor


class Activation(Operation):
    """A function of each value by itself."""

    relaxes = True

    @abstractmethod
    def lines(self, given: Interval) -> Lines:
        """Lines below and above the function on an interval."""

    @override
    def lower(self, call: Call, given: Sequence[Interval], rows: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        lines = self.lines(given[0])
        up, down = rows.clamp_min(0), rows.clamp_max(0)
        constant = (up * lines.lower_offset + down * lines.upper_offset).flatten(2).sum(2)
        return [up * lines.lower_slope + down * lines.upper_slope], constant


class PiecewiseLinear(Activation):
    """``max(x, slope x)``: ReLU, or a leaky one.

    Args:
        slope: in [0, 1], below 0.
    """

    def __init__(self, slope: float = 0.0) -> None:
        self._slope = slope

    def _of(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, self._slope)

    @override
    def interval(self, call: Call, given: Sequence[Interval]) -> Interval:
        return Interval(self._of(given[0].low), self._of(given[0].high))

    @override
    def lines(self, given: Interval) -> Lines:
        low, high = given.low, given.high
        one, other = torch.ones_like(low), torch.full_like(low, self._slope)
        nothing = torch.zeros_like(low)
        uncertain = (low < 0) & (high > 0)
        width = torch.where(uncertain, high - low, one)
        chord = torch.where(uncertain, (self._of(high) - self._of(low)) / width, torch.where(low >= 0, one, other))
        below = torch.where(uncertain, torch.where(high > -low, one, other), chord)
        return Lines(below, nothing, chord, torch.where(uncertain, self._of(low) - chord * low, nothing))


class Smooth(Activation):
    """A smooth function that rises, or that falls to its only minimum and rises after it.

    Args:
        function: of a tensor, value by value.
        curvature: a bound on its second derivative, in absolute value.
        lowest_at, lowest: where its minimum lies, and a bound on it from below; None of one that rises everywhere.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        curvature: float,
        lowest_at: tuple[float, float] | None = None,
        lowest: float = 0.0,
    ) -> None:
        self._of, self._curvature, self._lowest_at, self._lowest = function, curvature, lowest_at, lowest

    @override
    def interval(self, call: Call, given: Sequence[Interval]) -> Interval:
        low, high = given[0].low, given[0].high
        first, last = self._of(low), self._of(high)
        if self._lowest_at is None:
            return Interval(first, last)
        inside = (low < self._lowest_at[1]) & (high > self._lowest_at[0])
        least = first.minimum(last)
        return Interval(torch.where(inside, least.clamp_max(self._lowest), least), first.maximum(last))

    @override
    def lines(self, given: Interval) -> Lines:
        low, width = given.low, (given.high - given.low).clamp_min(0)
        wide = width > _NARROW
        slope = torch.where(wide, (self._of(low + width) - self._of(low)) / torch.where(wide, width, 1.0), 0.0)
        grid = torch.linspace(0, 1, _STEPS + 1, dtype=low.dtype, device=low.device).view(-1, *(1,) * low.ndim)
        points = low + grid * width
        gaps = self._of(points) - slope * points
        slack = self._curvature * (width / _STEPS).square() / 8
        return Lines(slope, gaps.amin(0) - slack, slope, gaps.amax(0) + slack)


def relu() -> PiecewiseLinear:
    """``max(x, 0)``."""
    return PiecewiseLinear()


def sigmoid() -> Smooth:
    """``1 / (1 + exp(-x))``, whose second derivative is at most 1 / (6 sqrt 3)."""
    return Smooth(torch.sigmoid, 0.0963)


def tanh() -> Smooth:
    """``tanh``, whose second derivative is at most 4 / (3 sqrt 3)."""
    return Smooth(torch.tanh, 0.7699)


def softplus(beta: float = 1.0, threshold: float = 20.0) -> Smooth:
    """``log(1 + exp(beta x)) / beta``, whose second derivative is at most beta / 4."""
    return Smooth(lambda x: F.softplus(x, beta, threshold), beta / 4)


def silu() -> Smooth:
    """``x sigmoid(x)``; its second derivative is 1/2 at 0 and nowhere more, its minimum -0.27846 at -1.27846."""
    return Smooth(F.silu, 0.5001, (-1.27847, -1.27846), -0.278465)


def gelu(approximate: str = "none") -> Smooth:
    """``x Phi(x)``, or its approximation by tanh; second derivative 0.798 at 0 and nowhere more, minimum -0.17 near -0.752."""
    return Smooth(lambda x: F.gelu(x, approximate=approximate), 0.7981, (-0.7530, -0.7510), -0.170041)
