"""Colours of sRGB in CIELUV, whose distances are nearly those that the eye sees, each coordinate as a share of its range.

    L* = 116 (Y / Yn)^(1/3) - 16,  u* = 13 L* (u' - u'n),  v* = 13 L* (v' - v'n),   u' = 4X / (X + 15Y + 3Z),  v' = 9Y / (X + 15Y + 3Z)

Source: CIE 15:2004 (CIE 1976 L*u*v*), with the matrix, the transfer function and the white point D65 of sRGB, IEC 61966-2-1:1999.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

_XYZ_OF_RGB = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
_LOWEST, _HIGHEST = (0.0, -83.1, -134.2), (100.0, 175.1, 107.5)
"""Of L*, u* and v* over the colours of sRGB."""
_DARK, _KAPPA = (6 / 29) ** 3, (29 / 3) ** 3


def luv_of_rgb(rgb: Tensor) -> Tensor:
    """(B, 3, ..) colours in [0, 1] -> their coordinates in [0, 1], differentiable."""
    light = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4)
    x, y, z = _times(_matrix(rgb), light).unbind(1)
    lightness = torch.where(y > _DARK, 116 * y.clamp_min(_DARK) ** (1 / 3) - 16, _KAPPA * y)
    total = (x + 15 * y + 3 * z).clamp_min(1e-9)
    white_u, white_v = _white(rgb)
    found = torch.stack([lightness, 13 * lightness * (4 * x / total - white_u), 13 * lightness * (9 * y / total - white_v)], 1)
    low, high = _ranges(rgb)
    return (found - low) / (high - low)


def rgb_of_luv(luv: Tensor) -> Tensor:
    """(B, 3, ..) coordinates as ``luv_of_rgb`` gives them -> colours in [0, 1]; what sRGB does not have is cut to it."""
    low, high = _ranges(luv)
    lightness, u, v = (low + luv * (high - low)).unbind(1)
    lit = lightness.clamp_min(1e-3)
    white_u, white_v = _white(luv)
    u, v = u / (13 * lit) + white_u, (v / (13 * lit) + white_v).clamp_min(1e-3)
    y = torch.where(lightness > 8, ((lit + 16) / 116) ** 3, lightness.clamp_min(0) / _KAPPA)
    xyz = torch.stack([y * 9 * u / (4 * v), y, y * (12 - 3 * u - 20 * v) / (4 * v)], 1)
    light = _times(torch.linalg.inv(_matrix(luv)), xyz).clamp(0, 1)
    return torch.where(light <= 0.0031308, 12.92 * light, 1.055 * light.clamp_min(0.0031308) ** (1 / 2.4) - 0.055).clamp(0, 1)


def _times(matrix: Tensor, colours: Tensor) -> Tensor:
    return torch.einsum("ij,nj...->ni...", matrix, colours)


def _matrix(like: Tensor) -> Tensor:
    return torch.tensor(_XYZ_OF_RGB, dtype=like.dtype, device=like.device)


def _white(like: Tensor) -> tuple[Tensor, Tensor]:
    """u'n and v'n, of the colour (1, 1, 1)."""
    x, y, z = _matrix(like).sum(1).unbind()
    total = x + 15 * y + 3 * z
    return 4 * x / total, 9 * y / total


def _ranges(like: Tensor) -> tuple[Tensor, Tensor]:
    shape = (1, 3, *[1] * (like.ndim - 2))
    low, high = (torch.tensor(ends, dtype=like.dtype, device=like.device).view(shape) for ends in (_LOWEST, _HIGHEST))
    return low, high
