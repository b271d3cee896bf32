"""ResNet-18 and its pre-activation form with the 3x3 stem that the robustness literature uses on 32x32 images.

The names of the layers are the ones that published checkpoints of these two networks have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from robustkd.lazy import F, nn
from robustkd.models.image import GlobalMeanPool, ImageModel, ImageNetwork, conv3x3

if TYPE_CHECKING:
    from torch import Tensor

_STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))  # channels and stride; two blocks each


class BasicBlock(nn.Module):
    """conv, norm, ReLU, conv, norm; plus the shortcut; ReLU."""

    branch_end: str | None = "bn2"

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3x3(inputs, outputs, stride, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv3x3(outputs, outputs, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut = self._shortcut(inputs, outputs, stride)

    def _shortcut(self, inputs: int, outputs: int, stride: int) -> nn.Module:
        """What the block's output is added to; one that is no identity has ``branch_end`` None."""
        if stride == 1 and inputs == outputs:
            return nn.Sequential()
        self.branch_end = None
        return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride), rounded up."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class PreActBlock(nn.Module):
    """norm, ReLU, conv, norm, ReLU, conv; plus the shortcut.

    Where the shortcut has a convolution it leaves from the first ReLU.
    """

    branch_end: str | None = "conv2"

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv3x3(inputs, outputs, stride, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), conv3x3(outputs, outputs, bias=False)
        self.shortcut: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.branch_end = None
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride), rounded up."""
        out: Tensor = F.relu(self.bn1(x))
        skipped = x if self.shortcut is None else self.shortcut(out)
        out = self.conv2(F.relu(self.bn2(self.conv1(out))))
        return out + skipped


class ResNet18Network(ImageNetwork):
    """A 3x3 stem, four stages of two basic blocks, global mean pooling, one linear layer."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3x3(channels, 64, bias=False), nn.BatchNorm2d(64)
        self.layer1, self.layer2, self.layer3, self.layer4 = _stages(BasicBlock)
        self.pool = GlobalMeanPool()
        self.linear = nn.Linear(512, num_classes)

    def _logits(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.linear(self.pool(x))
        return logits


class PreActResNet18Network(ImageNetwork):
    """A 3x3 stem, four stages of two pre-activation blocks, norm, ReLU, global mean pooling, one linear layer."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels, 64, bias=False)
        self.layer1, self.layer2, self.layer3, self.layer4 = _stages(PreActBlock)
        self.bn = nn.BatchNorm2d(512)
        self.pool = GlobalMeanPool()
        self.linear = nn.Linear(512, num_classes)

    def _logits(self, x: Tensor) -> Tensor:
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        logits: Tensor = self.linear(self.pool(F.relu(self.bn(x))))
        return logits


class ResNet18(ImageModel):
    """ResNet-18 with a 3x3 stem of stride 1 and no max pooling: 11.2 M parameters."""

    source: ClassVar[str] = "He et al., Deep residual learning for image recognition, CVPR 2016"
    smallest: ClassVar[int] = 8

    def _network(self, channels: int, height: int, width: int, num_classes: int) -> ImageNetwork:
        return ResNet18Network(channels, num_classes)


class PreActResNet18(ImageModel):
    """Pre-activation ResNet-18 with a 3x3 stem and a last norm and ReLU before pooling: 11.2 M parameters."""

    source: ClassVar[str] = "He et al., Identity mappings in deep residual networks, ECCV 2016"
    smallest: ClassVar[int] = 8

    def _network(self, channels: int, height: int, width: int, num_classes: int) -> ImageNetwork:
        return PreActResNet18Network(channels, num_classes)


def _stages(block: type[BasicBlock] | type[PreActBlock]) -> list[nn.Sequential]:
    stages, inputs = [], 64
    for outputs, stride in _STAGES:
        stages.append(nn.Sequential(block(inputs, outputs, stride), block(outputs, outputs, 1)))
        inputs = outputs
    return stages
