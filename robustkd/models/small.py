"""Small convolutional networks for images of 8x8 to 32x32 pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from robustkd.contracts import Params
from robustkd.lazy import nn
from robustkd.models.image import ImageModel, ImageNetwork, ImageParams, conv3x3

if TYPE_CHECKING:
    from torch import Tensor


class SmallCNNParams(ImageParams):
    width: int = Field(32, ge=1, description="channels of the first stage; the second has twice as many")


class SmallCNNNetwork(ImageNetwork):
    """Three 3x3 convolutions, the last two of stride 2, and two linear layers."""

    def __init__(self, channels: int, height: int, width: int, num_classes: int, first: int) -> None:
        super().__init__()
        self.conv1, self.relu1 = conv3x3(channels, first), nn.ReLU()
        self.conv2, self.relu2 = conv3x3(first, first, stride=2), nn.ReLU()
        self.conv3, self.relu3 = conv3x3(first, 2 * first, stride=2), nn.ReLU()
        self.flatten = nn.Flatten()
        self.linear1, self.relu4 = nn.Linear(2 * first * _quarter(height) * _quarter(width), 4 * first), nn.ReLU()
        self.linear2 = nn.Linear(4 * first, num_classes)

    def _logits(self, x: Tensor) -> Tensor:
        x = self.relu1(self.conv1(x))
        x = self.relu2(self.conv2(x))
        x = self.relu3(self.conv3(x))
        logits: Tensor = self.linear2(self.relu4(self.linear1(self.flatten(x))))
        return logits


class SmallCNN(ImageModel):
    """The default network of small campaigns: 3.3 M multiply-adds and 0.4 M parameters for 28x28x1 images."""

    Params: ClassVar[type[Params]] = SmallCNNParams

    def _network(self, channels: int, height: int, width: int, num_classes: int) -> ImageNetwork:
        return SmallCNNNetwork(channels, height, width, num_classes, self.params.width)


class TinyCNNParams(ImageParams):
    width: int = Field(16, ge=1, description="channels of the first convolution; the second has twice as many")


class TinyCNNNetwork(ImageNetwork):
    """Two 3x3 convolutions of stride 2 and one linear layer."""

    def __init__(self, channels: int, height: int, width: int, num_classes: int, first: int) -> None:
        super().__init__()
        self.conv1, self.relu1 = conv3x3(channels, first, stride=2), nn.ReLU()
        self.conv2, self.relu2 = conv3x3(first, 2 * first, stride=2), nn.ReLU()
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(2 * first * _quarter(height) * _quarter(width), num_classes)

    def _logits(self, x: Tensor) -> Tensor:
        x = self.relu1(self.conv1(x))
        x = self.relu2(self.conv2(x))
        logits: Tensor = self.linear(self.flatten(x))
        return logits


class TinyCNN(ImageModel):
    """A student: about a twelfth of ``small-cnn``'s multiply-adds and a twentieth of its parameters for 28x28x1 images."""

    Params: ClassVar[type[Params]] = TinyCNNParams

    def _network(self, channels: int, height: int, width: int, num_classes: int) -> ImageNetwork:
        return TinyCNNNetwork(channels, height, width, num_classes, self.params.width)


class LeNet5Network(ImageNetwork):
    """conv 32, pool, conv 64, pool, linear 200, linear K."""

    def __init__(self, channels: int, height: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.conv1, self.relu1, self.maxpool1 = conv3x3(channels, 32), nn.ReLU(), nn.MaxPool2d(2)
        self.conv2, self.relu2, self.maxpool2 = conv3x3(32, 64), nn.ReLU(), nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.linear1, self.relu3 = nn.Linear(64 * (height // 4) * (width // 4), 200), nn.ReLU()
        self.linear2 = nn.Linear(200, num_classes)

    def _logits(self, x: Tensor) -> Tensor:
        x = self.maxpool1(self.relu1(self.conv1(x)))
        x = self.maxpool2(self.relu2(self.conv2(x)))
        logits: Tensor = self.linear2(self.relu3(self.linear1(self.flatten(x))))
        return logits


class LeNet5(ImageModel):
    """LeNet-5 in the form that advertorch trained and published attack figures for (3x3 convolutions, ReLU, max pooling)."""

    source: ClassVar[str] = "LeCun et al., Gradient-based learning applied to document recognition, 1998"

    def _network(self, channels: int, height: int, width: int, num_classes: int) -> ImageNetwork:
        return LeNet5Network(channels, height, width, num_classes)


def _quarter(size: int) -> int:
    # What two convolutions of stride 2 and padding 1 leave.
    return -(-size // 4)
