"""Gaussian noise on the input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from robustkd.contracts import Params, Transform
from robustkd.lazy import nn, torch

if TYPE_CHECKING:
    from torch import Tensor


class GaussianNoiseParams(Params):
    std: float = Field(0.1, gt=0, description="standard deviation, in pixel units")


class AddNoise(nn.Module):
    """x -> x + std * n, n ~ N(0, I) anew at every pass; not clipped, so that no gradient is lost at black and white."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = std

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return images + self.std * torch.randn_like(images)


class GaussianNoise(Transform):
    """Gaussian noise, in training and in use."""

    Params: ClassVar[type[Params]] = GaussianNoiseParams
    source = "Liu et al.: Towards robust neural networks via random self-ensemble (ECCV 2018), arXiv:1712.00673"

    @override
    def build(self, input_shape: Sequence[int]) -> nn.Module:
        return AddNoise(self.params.std)
