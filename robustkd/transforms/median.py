"""Median smoothing: each pixel becomes the median of a square around it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from robustkd.contracts import Params, Transform
from robustkd.lazy import F, nn

if TYPE_CHECKING:
    from torch import Tensor


class MedianParams(Params):
    side: int = Field(
        2, ge=2, le=7, description="pixels on a side of the square; of an even one the pixel is right below its middle"
    )


class Median(nn.Module):
    """The stage; beyond its border an image is reflected. The gradient goes to the pixels that the median is made of."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> the same; of an even number of pixels the mean of the two in the middle."""
        before, after = self.side // 2, self.side - 1 - self.side // 2
        padded = F.pad(images, (before, after, before, after), mode="reflect")
        ordered = padded.unfold(2, self.side, 1).unfold(3, self.side, 1).flatten(4).sort(-1).values
        middle = self.side**2
        return (ordered[..., (middle - 1) // 2] + ordered[..., middle // 2]) / 2


class MedianSmoothing(Transform):
    """The median of each pixel's neighbourhood."""

    Params: ClassVar[type[Params]] = MedianParams
    source = "Xu, Evans & Qi: Feature squeezing (NDSS 2018), arXiv:1704.01155, section III.B"

    @override
    def build(self, input_shape: Sequence[int]) -> nn.Module:
        return Median(self.params.side)
