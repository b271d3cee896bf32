"""MobileNetV2 with the strides for 32x32 images: the usual small student of robust distillation."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from robustkd.lazy import F, nn
from robustkd.models.image import GlobalMeanPool, ImageModel, ImageNetwork

if TYPE_CHECKING:
    from torch import Tensor

# (expansion, output channels, blocks, stride), the paper's table 2 with the second and the stem's stride set to 1.
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 linear projection.

    Like the networks that the distillation papers train and publish, and unlike the paper's, it has plain ReLUs and a
    1x1 convolution in the shortcut where a block of stride 1 changes the number of channels.
    """

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        inner = expansion * inputs
        self.conv1, self.bn1 = nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential() if stride == 1 else None
        if self.shortcut is not None and inputs != outputs:
            self.shortcut.extend([nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)])

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride), rounded up."""
        inner = F.relu(self.bn1(self.conv1(x)))
        inner = F.relu(self.bn2(self.conv2(inner)))
        out: Tensor = self.bn3(self.conv3(inner))
        return out if self.shortcut is None else out + self.shortcut(x)


class MobileNetV2Network(ImageNetwork):
    """A 3x3 stem, 17 inverted residuals, a 1x1 convolution to 1,280 channels, global mean pooling, one linear layer."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32)
        blocks, inputs = [], 32
        for expansion, outputs, count, stride in _STAGES:
            for number in range(count):
                blocks.append(InvertedResidual(inputs, outputs, expansion, stride if number == 0 else 1))
                inputs = outputs
        self.layers = nn.Sequential(*blocks)
        self.conv2, self.bn2 = nn.Conv2d(inputs, 1280, 1, bias=False), nn.BatchNorm2d(1280)
        self.pool = GlobalMeanPool()
        self.linear = nn.Linear(1280, num_classes)

    def _logits(self, x: Tensor) -> Tensor:
        x = self.layers(F.relu(self.bn1(self.conv1(x))))
        x = F.relu(self.bn2(self.conv2(x)))
        logits: Tensor = self.linear(self.pool(x))
        return logits


class MobileNetV2(ImageModel):
    """MobileNetV2 for small images: 2.3 M parameters."""

    source: ClassVar[str] = "Sandler et al., MobileNetV2: inverted residuals and linear bottlenecks, CVPR 2018"
    smallest: ClassVar[int] = 8

    def _network(self, channels: int, height: int, width: int, num_classes: int) -> ImageNetwork:
        return MobileNetV2Network(channels, num_classes)
