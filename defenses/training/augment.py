"""Random crop and horizontal flip of a whole batch as one gather, drawn for each sample and epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustkd.contracts.random import SampleRng
from robustkd.lazy import F, torch

if TYPE_CHECKING:
    from torch import Tensor

PADDING = 4
"""Zeros around the image before it is cropped to its size again: the CIFAR papers' value."""


def crop_flip(x: Tensor, rng: SampleRng) -> Tensor:
    """(B, C, H, W) shifted by up to ``PADDING`` pixels each way and mirrored with probability 1/2."""
    count, channels, height, width = x.shape
    draws = rng.integers((2,), 2 * PADDING + 1)
    flip = rng.integers((1,), 2) == 1
    down = torch.arange(height, device=x.device)
    right = torch.arange(width, device=x.device).expand(count, width)
    rows = draws[:, :1] + down
    columns = draws[:, 1:] + torch.where(flip, right.flip(1), right)
    padded = F.pad(x, [PADDING] * 4)
    which = torch.arange(count, device=x.device).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=x.device).view(1, -1, 1, 1)
    return padded[which, channel, rows.view(count, 1, height, 1), columns.view(count, 1, 1, width)]
