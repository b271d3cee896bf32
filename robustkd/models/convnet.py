"""ConvNet-D: the network that data are distilled with. D times convolution, normalisation, ReLU and mean pooling, then a linear layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from robustkd.contracts import Params, UsageError
from robustkd.lazy import nn
from robustkd.models.image import ImageModel, ImageNetwork, ImageParams, conv3x3

if TYPE_CHECKING:
    from torch import Tensor


class ConvNetParams(ImageParams):
    width: int = Field(128, ge=1, description="channels of each convolution")
    depth: int = Field(3, ge=1, description="D, blocks; each halves height and width")
    norm: Literal["instance", "batch", "none"] = Field(
        "instance", description="normalisation behind each convolution; instance keeps no statistics of the data, batch does"
    )


class ConvNetNetwork(ImageNetwork):
    """The blocks one after the other, and the linear layer."""

    def __init__(self, channels: int, height: int, width: int, num_classes: int, params: ConvNetParams) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for _ in range(params.depth):
            blocks += [conv3x3(channels, params.width), *_norm(params.norm, params.width), nn.ReLU(), nn.AvgPool2d(2)]
            channels, height, width = params.width, height // 2, width // 2
        self.blocks, self.flatten = nn.Sequential(*blocks), nn.Flatten()
        self.linear = nn.Linear(channels * height * width, num_classes)

    def _logits(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.flatten(self.blocks(x)))
        return logits


def _norm(kind: str, width: int) -> list[nn.Module]:
    if kind == "instance":
        return [nn.GroupNorm(width, width)]
    return [nn.BatchNorm2d(width)] if kind == "batch" else []


class ConvNet(ImageModel):
    """The network of dataset distillation: three blocks of 128 channels with instance normalisation."""

    Params: ClassVar[type[Params]] = ConvNetParams
    source: ClassVar[str] = (
        "Gidaris, Komodakis: Dynamic few-shot visual learning without forgetting, 2018, as Zhao et al. 2021 use it"
    )

    def _network(self, channels: int, height: int, width: int, num_classes: int) -> ImageNetwork:
        p = self.params
        if min(height, width) < 2**p.depth:
            raise UsageError(
                f"ConvNet of {p.depth} blocks cannot take images of {height}x{width}: each block halves them",
                fix=f"give depth: {max(1, min(height, width).bit_length() - 1)} or less",
            )
        return ConvNetNetwork(channels, height, width, num_classes, p)
