"""Max pooling: which linear functions of a window lie below and above its maximum.

    y >= x_i            of the value x_i whose least value is the highest
    y <= x_i            where no other value of the window can exceed the least value of x_i, and so y is x_i
    y <= max_j u_j      elsewhere

Source: Boopathy et al.: CNN-Cert: an efficient framework for certifying robustness of convolutional neural networks (AAAI 2019),
section 3.3 treats max pooling by a plane above it; the constant is simpler and looser.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from robustkd.certification.operation import Call, Interval, Operation


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


class MaxPooling(Operation):
    """Max pooling of images (B, C, H, W)."""

    relaxes = True
    mixes = True

    def __init__(
        self, kernel: int | tuple[int, int], stride: int | tuple[int, int] | None, padding: int | tuple[int, int]
    ) -> None:
        self._kernel, self._padding = _pair(kernel), _pair(padding)
        self._stride = self._kernel if stride is None else _pair(stride)

    @classmethod
    def of(cls, layer: nn.MaxPool2d) -> MaxPooling:
        """The operation of a layer."""
        return cls(layer.kernel_size, layer.stride, layer.padding)

    @override
    def interval(self, call: Call, given: Sequence[Interval]) -> Interval:
        return Interval(call(given[0].low), call(given[0].high))

    def _windows(self, images: Tensor, outside: float) -> Tensor:
        """(B, C, H, W) -> (B, C, H', W', k), the values of each window."""
        (tall, wide), (down, right), (top, left) = self._kernel, self._stride, self._padding
        padded = F.pad(images, (left, left, top, top), value=outside)
        return padded.unfold(2, tall, down).unfold(3, wide, right).flatten(4)

    @override
    def lower(self, call: Call, given: Sequence[Interval], rows: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        low, high = given[0].low, given[0].high
        lows, highs = self._windows(low, -torch.inf), self._windows(high, -torch.inf)
        least, best = lows.max(4)
        others = highs.scatter(4, best.unsqueeze(4), -torch.inf).amax(4)
        decided = others <= least
        places = torch.arange(low.shape[2] * low.shape[3], dtype=low.dtype, device=low.device).view(1, 1, *low.shape[2:])
        place = self._windows(places.expand_as(low), 0.0).gather(4, best.unsqueeze(4)).squeeze(4).long()
        up, down = rows.clamp_min(0), rows.clamp_max(0)
        passed = up + down * decided
        flat = rows.new_zeros(*rows.shape[:3], low.shape[2] * low.shape[3])
        flat = flat.scatter_add(3, place.flatten(2).expand(len(rows), -1, -1, -1), passed.flatten(3))
        constant = (down * torch.where(decided, 0.0, highs.amax(4))).flatten(2).sum(2)
        return [flat.unflatten(3, low.shape[2:])], constant
