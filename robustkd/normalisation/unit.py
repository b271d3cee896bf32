"""Inputs in a unit of their own: attacks and checks see them in [0, 1], a network and its user see them as they are.

All values are divided by one number, so that a ball stays a ball: eps in the user's unit is the same budget in every feature. Where the
ranges of the features differ, the widest one becomes [0, 1], and the others [0, w] with w < 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from robustkd.contracts import DataError, UsageError
from robustkd.contracts.target import Bounds
from robustkd.contracts.threat import Norm, largest_distance
from robustkd.lazy import nn, torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

ROUNDING = 1e-6
"""How far outside its range a value may be, as a share of the widest one, for rounding to be the reason."""


@dataclass(frozen=True)
class Unit:
    """The range of valid inputs, and what brings them to [0, 1].

    Attributes:
        low, high: numbers, or tensors that broadcast over one sample.
    """

    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, bounds: Any, shape: Sequence[int]) -> Unit | None:
        """The unit of ``(low, high)``, each a number, a list, an array or a tensor; None of (0, 1), where nothing is to be done.

        Raises:
            UsageError: they are no such pair, or no range is left between them.
        """
        try:
            low, high = (torch.as_tensor(each, dtype=torch.float64) for each in bounds)
            torch.broadcast_to(low, tuple(shape)), torch.broadcast_to(high, tuple(shape))
        except (TypeError, ValueError, RuntimeError):
            raise UsageError(
                f"bounds do not fit a sample of shape {tuple(shape)}",
                fix="give a pair, (-1, 1) or (0, 255), or two lists or tensors that broadcast over a sample's shape",
            ) from None
        if not bool(torch.isfinite(low).all() & torch.isfinite(high).all() & (low < high).all()):
            raise UsageError("bounds are no ranges", fix="give finite numbers, each lowest value below its highest")
        plain = bool((low == 0).all() & (high == 1).all())
        return None if plain else cls(*torch.broadcast_tensors(low, high))

    @property
    def uniform(self) -> bool:
        """Whether all features have the same range, so that the valid inputs are all of [0, 1]."""
        return bool((self.high - self.low == self.scale).all())

    @property
    def written(self) -> list[Any]:
        """``[low, high]`` as numbers or nested lists, for a file."""
        return [self.low.tolist(), self.high.tolist()]

    def before(self, network: nn.Module) -> nn.Sequential:
        """The network behind what brings its inputs from [0, 1] back to the user's unit."""
        from robustkd.normalisation.layer import Restored  # late: it imports torch

        first = next((each for each in network.parameters() if each.is_floating_point()), torch.zeros(0))
        return nn.Sequential(Restored(self.low, self.scale).to(first.device, first.dtype), network)

    @property
    def scale(self) -> float:
        """How wide the widest range is: what eps is divided by."""
        return float((self.high - self.low).max())

    def box(self, like: Tensor) -> Bounds:
        """The range of valid inputs in the attack's unit, as two numbers where it is the same for all features."""
        if self.uniform:
            return 0.0, 1.0
        width = (self.high - self.low) / self.scale
        return torch.zeros_like(width).to(like), width.to(like)

    def inputs(self, x: Tensor) -> Tensor:
        """(N, *shape) in the user's unit -> the same in [0, 1].

        Raises:
            DataError: values outside the bounds.
        """
        x = x if x.is_floating_point() and x.element_size() > 2 else x.float()
        unit = (x - self.low.to(x)) / self.scale
        low, high = torch.zeros_like(unit), ((self.high - self.low) / self.scale).to(unit).expand_as(unit)
        outside = ~((unit >= low - ROUNDING) & (unit <= high + ROUNDING))
        if bool(outside.any()):
            feature = tuple(int(each) for each in outside.nonzero()[0][1:])
            raise DataError(
                f"{int(outside.flatten(1).any(1).sum())} of {len(x)} samples are outside the bounds, first in feature {feature}: "
                f"{float(x[outside][0]):.6g}",
                fix="widen the bounds, or clamp the inputs",
            )
        return unit.clamp(low, high)

    def restored(self, unit: Tensor) -> Tensor:
        """Map images of the unit range back to the data's own, the inverse of ``inputs``."""
        x = unit * self.scale + self.low.to(unit)
        return x.clamp(self.low.to(x).expand_as(x), self.high.to(x).expand_as(x))

    def length(self, norm: Norm) -> float:
        """What a distance in the attack's unit is multiplied with."""
        return 1.0 if norm == "l0" else self.scale

    def require_plausible(self, norm: Norm, eps: float, shape: Sequence[int]) -> None:
        """Refuse a budget, in the user's unit, within which every input is.

        Raises:
            UsageError: ``eps`` is larger than the distance between any two inputs.
        """
        largest = largest_distance(norm, shape) * self.length(norm)
        if eps > largest * (1 + ROUNDING):
            raise UsageError(
                f"eps {eps:g} is more than the distance between any two inputs within the bounds in {norm}, {largest:.4g}",
                fix="give eps in the unit of the inputs",
            )
