"""Normalisation as the first layer of a network, so that eps stays a distance between pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from robustkd.lazy import nn, torch

if TYPE_CHECKING:
    from torch import Tensor


class Normalise(nn.Module):
    """``(x - mean) / std`` per channel, for images (B, C, H, W) in [0, 1].

    Args:
        mean, std: C numbers each.

    The constants follow the module to its device but stay out of its ``state_dict``: a checkpoint's keys are the same
    with and without normalisation, and the parameters of the model say which constants were used.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return (images - self.mean) / self.std


class Restored(nn.Module):
    """``x * scale + low``: from [0, 1] back to the unit that a network takes. The constants stay out of its ``state_dict``.

    Args:
        low: broadcasts over one sample.
        scale: how wide the widest range is.
    """

    low: Tensor

    def __init__(self, low: Tensor, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("low", low.clone(), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, *shape) -> (B, *shape)."""
        return inputs * self.scale + self.low
