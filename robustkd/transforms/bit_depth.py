"""Bit-depth reduction: pixels rounded to a few levels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from robustkd.contracts import Params, Transform
from robustkd.lazy import nn

if TYPE_CHECKING:
    from torch import Tensor


class BitDepthParams(Params):
    bits: int = Field(3, ge=1, le=8, description="bits that are left of each pixel")


class Quantise(nn.Module):
    """x -> round((2^b - 1) x) / (2^b - 1). Its gradient is zero; as a surrogate it declares the identity."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.steps = 2**bits - 1

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> the same, in 2^b levels."""
        return (images * self.steps).round() / self.steps

    def surrogate(self, images: Tensor) -> Tensor:
        """The identity: the rounded image's gradient is that of the image."""
        return images


class BitDepth(Transform):
    """Bit-depth reduction."""

    Params: ClassVar[type[Params]] = BitDepthParams
    source = "Xu, Evans & Qi: Feature squeezing (NDSS 2018), arXiv:1704.01155, section III.A"

    @override
    def build(self, input_shape: Sequence[int]) -> nn.Module:
        return Quantise(self.params.bits)
