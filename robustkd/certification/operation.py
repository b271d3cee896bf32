"""What a layer does to bounds: the base class of all kinds of layers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

Call = Callable[..., Tensor]
"""A layer as a function of the tensors that depend on the network's input."""


@dataclass(frozen=True)
class Interval:
    """Of each value (B, *shape) the least and the greatest that it can be."""

    low: Tensor
    high: Tensor

    def least(self, rows: Tensor) -> Tensor:
        """(S, B, *shape) coefficients -> (S, B), the least value of each linear function over the interval."""
        return (rows.clamp_min(0) * self.low + rows.clamp_max(0) * self.high).flatten(2).sum(2)

    def cut(self, other: Interval) -> Interval:
        """What both intervals allow."""
        return Interval(self.low.maximum(other.low), self.high.minimum(other.high))


class Operation(ABC):
    """One layer.

    Attributes:
        relaxes: whether linear bounds of it are looser than the layer itself, and the tighter the narrower its input's interval is.
        mixes: whether one output depends on several inputs.
    """

    relaxes = False
    mixes = False

    @abstractmethod
    def interval(self, call: Call, given: Sequence[Interval]) -> Interval:
        """The interval of the output, from those of the inputs."""

    @abstractmethod
    def lower(self, call: Call, given: Sequence[Interval], rows: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        """Linear functions of the inputs that are nowhere above linear functions of the output.

        Args:
            call: the layer.
            given: the intervals of its inputs, within which the answer holds.
            rows: (S, B, *shape) coefficients of the S functions of the output.

        Returns:
            Coefficients (S, B, *shape) for each input, and the constants (S, B).
        """
