"""A network from which narrower ones are cut: the first channels and units of each layer are a network by themselves.

    width s:   the first ceil(s * c) of the c channels of each convolution, and likewise of the units of the hidden layer

There is no normalisation, so a narrow network is the wide one with the rest of its weights at zero, and nothing has to be computed anew.

Sources: Yu, Huang: Universally slimmable networks (ICCV 2019), for the widths; that any size is cut out of one set of weights by its first
heads and neurons: POA (ECCV 2024) and AutoDistil (NeurIPS 2022), of transformers. The architecture is that of ``small-cnn``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, field_validator

from robustkd.contracts import Params
from robustkd.lazy import F, nn
from robustkd.models.image import ImageModel, ImageNetwork, ImageParams
from robustkd.models.sub_networks import SubNetworks

if TYPE_CHECKING:
    from torch import Tensor


class ElasticCNNParams(ImageParams):
    width: int = Field(32, ge=1, description="channels of the first stage at full width; the second has twice as many")
    widths: tuple[float, ...] = Field(
        (0.25, 0.5, 0.75, 1.0), min_length=2, description="the shares that can be cut, rising up to 1"
    )

    @field_validator("widths")
    @classmethod
    def _rising_to_one(cls, widths: tuple[float, ...]) -> tuple[float, ...]:
        if list(widths) != sorted(set(widths)) or widths[0] <= 0 or widths[-1] != 1:
            raise ValueError(f"widths {list(widths)} must be positive and rise up to 1")
        return widths


class ElasticConv(nn.Conv2d):
    """A 3x3 convolution of which the first channels can be asked alone."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, 3, stride=stride, padding=1)

    def forward(self, x: Tensor, outputs: int | None = None) -> Tensor:
        """(B, inputs or the first of them, H, W) -> (B, outputs, H / stride, W / stride), rounded up."""
        assert self.bias is not None
        return F.conv2d(x, self.weight[:outputs, : x.shape[1]], self.bias[:outputs], self.stride, self.padding)


class ElasticLinear(nn.Linear):
    """A linear layer of which the first units can be asked alone."""

    def forward(self, x: Tensor, outputs: int | None = None) -> Tensor:
        """(B, inputs or the first of them) -> (B, outputs)."""
        return F.linear(x, self.weight[:outputs, : x.shape[1]], self.bias[:outputs])


class ElasticCNNNetwork(SubNetworks):
    """Three convolutions, the last two of stride 2, and two linear layers; it answers by its full width."""

    def __init__(self, channels: int, height: int, width: int, num_classes: int, params: ElasticCNNParams) -> None:
        super().__init__()
        first, self.widths = params.width, params.widths
        halves = -(-height // 2) * -(-width // 2)
        quarters = -(-height // 4) * -(-width // 4)
        self.sizes = (first, first, 2 * first, 4 * first)
        self.conv1, self.conv2, self.conv3 = (
            ElasticConv(channels, first),
            ElasticConv(first, first, stride=2),
            ElasticConv(first, 2 * first, stride=2),
        )
        self.linear1, self.linear2 = ElasticLinear(2 * first * quarters, 4 * first), ElasticLinear(4 * first, num_classes)
        self.names = tuple(f"width-{share:g}" for share in self.widths)
        self.multiply_adds = tuple(
            9 * (channels * one * height * width + one * two * halves + two * three * quarters)
            + three * quarters * four
            + four * num_classes
            for one, two, three, four in map(self._cut, self.widths)
        )

    def _cut(self, share: float) -> tuple[int, ...]:
        """How many channels and units of each layer belong to this width."""
        return tuple(math.ceil(share * size) for size in self.sizes)

    def _answer(self, number: int, x: Tensor) -> Tensor:
        one, two, three, four = self._cut(self.widths[number])
        x = F.relu(self.conv1(x, one))
        x = F.relu(self.conv2(x, two))
        x = F.relu(self.conv3(x, three))
        logits: Tensor = self.linear2(F.relu(self.linear1(x.flatten(1), four)))
        return logits

    def _logits(self, x: Tensor) -> Tensor:
        return self._answer(len(self.widths) - 1, x)


class ElasticCNN(ImageModel):
    """``small-cnn`` from which narrower networks are cut: 3.3 M multiply-adds at full width, 0.25 M at a quarter, for 28x28x1 images."""

    Params: ClassVar[type[Params]] = ElasticCNNParams
    source: ClassVar[str] = "Yu and Huang, Universally slimmable networks, ICCV 2019"

    def _network(self, channels: int, height: int, width: int, num_classes: int) -> ImageNetwork:
        return ElasticCNNNetwork(channels, height, width, num_classes, self.params)
