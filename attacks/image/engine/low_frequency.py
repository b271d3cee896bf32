"""Directions made of an image's low frequencies: few numbers, in which networks change their mind most easily."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def cosines(size: int, count: int, like: Tensor) -> Tensor:
    """(count, size): the first rows of the orthonormal discrete cosine transform (DCT-II), of the type of ``like``."""
    k = torch.arange(count, dtype=torch.float32, device=like.device).unsqueeze(1)
    n = torch.arange(size, dtype=torch.float32, device=like.device)
    rows = torch.cos(math.pi / size * (n + 0.5) * k) * math.sqrt(2 / size)
    rows[0] /= math.sqrt(2)
    return rows.to(like.dtype)


def frequencies(shape: Sequence[int], share: float) -> tuple[int, ...]:
    """The shape of the coefficients for inputs of ``shape``: the lowest ``share`` of each side of (C, H, W), all of other inputs."""
    if len(shape) != 3:
        return tuple(shape)
    return shape[0], max(1, round(share * shape[1])), max(1, round(share * shape[2]))


def from_frequencies(coefficients: Tensor, shape: Sequence[int]) -> Tensor:
    """(B, *frequencies(shape, share)) -> (B, *shape), the inverse transform; a direction keeps its length."""
    if len(shape) != 3:
        return coefficients
    down, across = (cosines(size, count, coefficients) for size, count in zip(shape[1:], coefficients.shape[2:], strict=True))
    return down.T @ coefficients @ across


def low_frequency_noise(rng: SampleRng, like: Tensor, share: float) -> Tensor:
    """(B, *shape) normal in the lowest ``share`` of the frequencies of each side of ``like``."""
    shape = like.shape[1:]
    return from_frequencies(rng.normal(frequencies(shape, share), like.dtype), shape)
