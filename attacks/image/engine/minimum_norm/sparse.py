"""Perturbations of few pixels; of an image (C, H, W) a pixel is all its channels, as in ``distance``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def pixel_gains(gain: Tensor) -> Tensor:
    """(A, *shape) of each value -> (A, *shape) of its pixel: the sum over the channels, where there are channels."""
    return gain.sum(1, keepdim=True).expand_as(gain) if gain.ndim > 3 else gain


def largest(delta: Tensor, count: Tensor) -> Tensor:
    """Project each row onto {d : ||d||_0 <= count}: its ``count`` largest pixels, 0 elsewhere.

    Args:
        delta: (A, *shape).
        count: (A,) whole numbers.
    """
    size = delta.norm(dim=1, keepdim=True) if delta.ndim > 3 else delta.abs()
    rank = size.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    kept = (rank < count.unsqueeze(1)).view_as(size)
    return delta * kept
