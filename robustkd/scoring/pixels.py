"""Pixels, as l0 counts them: of an image (B, C, H, W) a pixel is all its channels, of other inputs every value is one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def over_channels(values: Tensor) -> Tensor:
    """The sum over the channels of each pixel: (A, C, *size) -> (A, 1, *size), and inputs without channels as they are."""
    return values.sum(1, keepdim=True) if values.ndim > 3 else values


def highest(score: Tensor, count: Tensor) -> Tensor:
    """Where the ``count`` highest scores of each row are. Of equal scores the earlier ones are taken, so no sample depends on others.

    Args:
        score: (A, *shape).
        count: (A,); a fraction is rounded down.

    Returns:
        (A, *shape) bool.
    """
    order = score.flatten(1).argsort(dim=1, descending=True, stable=True)
    taken = torch.arange(order.shape[1], device=order.device) < count.floor().unsqueeze(1)
    return torch.zeros_like(taken).scatter(1, order, taken).view_as(score)


def largest(delta: Tensor, count: Tensor) -> Tensor:
    """Project each row onto {d : ||d||_0 <= count}: its ``count`` largest pixels, 0 elsewhere.

    Args:
        delta: (A, *shape).
        count: (A,) numbers of pixels.
    """
    size = delta.norm(dim=1, keepdim=True) if delta.ndim > 3 else delta.abs()
    return delta * highest(size, count)
