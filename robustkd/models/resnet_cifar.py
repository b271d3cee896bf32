"""The ResNets that He et al. designed for CIFAR: three stages of 16, 32 and 64 channels, 6n+2 layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from robustkd.lazy import F, nn
from robustkd.models import resnet
from robustkd.models.image import GlobalMeanPool, ImageModel, ImageNetwork, conv3x3

if TYPE_CHECKING:
    from torch import Tensor


class OptionA(nn.Module):
    """The shortcut without parameters: subsample positions, pad the new channels with zeros on both sides."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride, self.padding = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride), rounded up."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))


class BasicBlock(resnet.BasicBlock):
    """Two 3x3 convolutions around a shortcut without parameters."""

    @override
    def _shortcut(self, inputs: int, outputs: int, stride: int) -> nn.Module:
        if inputs == outputs:
            return nn.Identity()
        self.branch_end = None
        return OptionA(inputs, outputs, stride)


class CifarResNetNetwork(ImageNetwork):
    """A 3x3 stem, three stages of ``blocks`` basic blocks, global mean pooling, one linear layer."""

    def __init__(self, channels: int, num_classes: int, blocks: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3x3(channels, 16, bias=False), nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.pool = GlobalMeanPool()
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def _logits(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(self.pool(x))
        return logits


class CifarResNet(ImageModel):
    """ResNet of ``depth`` = 6n+2 layers for CIFAR, with option-A shortcuts."""

    source: ClassVar[str] = "He et al., Deep residual learning for image recognition, CVPR 2016, section 4.2"
    depth: ClassVar[int]

    def _network(self, channels: int, height: int, width: int, num_classes: int) -> ImageNetwork:
        return CifarResNetNetwork(channels, num_classes, (self.depth - 2) // 6)


class ResNet20(CifarResNet):
    """0.27 M parameters."""

    depth: ClassVar[int] = 20


class ResNet32(CifarResNet):
    """0.46 M parameters."""

    depth: ClassVar[int] = 32


class ResNet44(CifarResNet):
    """0.66 M parameters."""

    depth: ClassVar[int] = 44


class ResNet56(CifarResNet):
    """0.85 M parameters."""

    depth: ClassVar[int] = 56


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))
