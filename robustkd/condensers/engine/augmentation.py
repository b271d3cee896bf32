"""Differentiable Siamese augmentation: the same random change of real and synthetic images, which a gradient goes through.

One change is drawn at a time, and one set of numbers for all images that are given to it:

    colour     x + b,  then saturation and contrast around the mean        b in [-1/2, 1/2], saturation in [0, 2], contrast in [1/2, 3/2]
    crop       shifted by up to 1/8 of the size, zeros from outside
    cutout     a square of half the size set to zero
    flip       mirrored, with probability 1/2
    scale      height and width each by a factor between 1/1.2 and 1.2
    rotate     by up to 15 degrees

Source: Zhao, Bilen: Dataset condensation with differentiable Siamese augmentation (ICML 2021), arXiv:2102.08259, section 3 and the
appendix's ranges.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from robustkd.lazy import F, torch

if TYPE_CHECKING:
    from torch import Tensor

Change = Literal["colour", "crop", "cutout", "flip", "scale", "rotate"]
ALL: tuple[Change, ...] = ("colour", "crop", "cutout", "flip", "scale", "rotate")


@dataclass(frozen=True)
class Augmentation:
    """One change with its numbers: what it does to any images.

    Attributes:
        change: which one; None changes nothing.
        draws: numbers in [0, 1).
    """

    change: Change | None
    draws: tuple[float, ...] = ()

    def __call__(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if self.change is None or not len(x):
            return x
        return _CHANGES[self.change](x, self.draws)


def draw(changes: Sequence[Change], generator: torch.Generator) -> Augmentation:
    """One of ``changes`` with its numbers; without any, the one that changes nothing."""
    if not changes:
        return Augmentation(None)
    which = int(torch.randint(len(changes), (), generator=generator))
    return Augmentation(changes[which], tuple(torch.rand(3, generator=generator).tolist()))


def mirrored(x: Tensor) -> Tensor:
    """(B, C, H, W): each image's mirror image."""
    return x.flip(3)


def _colour(x: Tensor, draws: Sequence[float]) -> Tensor:
    brightness, saturation, contrast = draws
    x = x + (brightness - 0.5)
    grey = x.mean(1, keepdim=True)
    x = (x - grey) * (2 * saturation) + grey
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) * (contrast + 0.5) + mean


def _crop(x: Tensor, draws: Sequence[float]) -> Tensor:
    height, width = x.shape[2:]
    down, right = (_within(drawn, round(size / 8)) for drawn, size in zip(draws, (height, width), strict=False))
    padded = F.pad(x, [abs(right)] * 2 + [abs(down)] * 2)
    return padded[:, :, abs(down) + down :, abs(right) + right :][:, :, :height, :width]


def _within(drawn: float, most: int) -> int:
    """A whole number in -most..most."""
    return int(drawn * (2 * most + 1)) - most


def _cutout(x: Tensor, draws: Sequence[float]) -> Tensor:
    height, width = x.shape[2:]
    keep = torch.ones(height, width, dtype=x.dtype, device=x.device)
    spans = []
    for drawn, size in zip(draws, (height, width), strict=False):
        centre, half = int(drawn * size), (size // 2) // 2
        spans.append(slice(max(0, centre - half), centre + half + (size // 2) % 2))
    keep[spans[0], spans[1]] = 0
    return x * keep


def _flip(x: Tensor, draws: Sequence[float]) -> Tensor:
    return mirrored(x) if draws[0] < 0.5 else x


def _scale(x: Tensor, draws: Sequence[float]) -> Tensor:
    down, right = (1.2 ** (2 * drawn - 1) for drawn in draws[:2])
    return _affine(x, [[right, 0, 0], [0, down, 0]])


def _rotate(x: Tensor, draws: Sequence[float]) -> Tensor:
    angle = math.radians(15) * (2 * draws[0] - 1)
    return _affine(x, [[math.cos(angle), math.sin(-angle), 0], [math.sin(angle), math.cos(angle), 0]])


def _affine(x: Tensor, matrix: list[list[float]]) -> Tensor:
    rows = torch.tensor(matrix, dtype=x.dtype, device=x.device).expand(len(x), 2, 3)
    return F.grid_sample(x, F.affine_grid(rows, list(x.shape), align_corners=False), align_corners=False)


_CHANGES = {"colour": _colour, "crop": _crop, "cutout": _cutout, "flip": _flip, "scale": _scale, "rotate": _rotate}
