"""Pictures of several sizes in one tensor, as they are kept and shown; judges see each as it was drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from robustkd.lazy import F, torch

if TYPE_CHECKING:
    from torch import Tensor


def stacked(pictures: Sequence[Tensor]) -> Tensor:
    """(N, C, H, W) on the CPU, of N pictures (C, h, w)."""
    return joined([picture.unsqueeze(0).cpu() for picture in pictures])


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Parts (n, *shape) one after the other. Pictures (n, C, h, w) of several sizes are at the top left of one as high and as wide as the
    highest and the widest of them, which is black outside of them.
    """
    if len({part.shape[1:] for part in parts}) == 1:
        return torch.cat(list(parts))
    height, width = (max(part.shape[side] for part in parts) for side in (-2, -1))
    return torch.cat([F.pad(part, (0, width - part.shape[-1], 0, height - part.shape[-2])) for part in parts])
