"""Wide residual networks. The names of the layers are the ones that published robust checkpoints have."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, field_validator

from robustkd.contracts import Params
from robustkd.lazy import F, nn
from robustkd.models.image import GlobalMeanPool, ImageModel, ImageNetwork, ImageParams, conv3x3

if TYPE_CHECKING:
    from torch import Tensor


class WideResNetParams(ImageParams):
    depth: int = Field(28, ge=10, description="number of layers, 6n+4 (WRN-28-10 has depth 28)")
    width: int = Field(10, ge=1, description="widening factor (WRN-28-10 has width 10)")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout rate between the two convolutions of a block")

    @field_validator("depth")
    @classmethod
    def _depth_fits(cls, depth: int) -> int:
        if (depth - 4) % 6:
            raise ValueError(f"depth must be 6n+4, such as 10, 16, 22, 28, 34 or 70; {depth} is not")
        return depth


class WideBlock(nn.Module):
    """norm, ReLU, conv, norm, ReLU, dropout, conv; plus the shortcut.

    Where the shortcut has a convolution it leaves from the first ReLU.
    """

    branch_end: str | None = "conv2"

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv3x3(inputs, outputs, stride, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), conv3x3(outputs, outputs, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.convShortcut = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        if inputs != outputs:
            self.branch_end = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride), rounded up."""
        out: Tensor = F.relu(self.bn1(x))
        skipped = x if self.convShortcut is None else self.convShortcut(out)
        out = self.conv2(self.dropout(F.relu(self.bn2(self.conv1(out)))))
        return out + skipped


class WideResNetNetwork(ImageNetwork):
    """A 3x3 stem, three stages of wide blocks, norm, ReLU, global mean pooling, one linear layer."""

    def __init__(self, channels: int, num_classes: int, depth: int, width: int, dropout: float) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        self.conv1 = conv3x3(channels, 16, bias=False)
        self.block1 = _stage(16, 16 * width, blocks, 1, dropout)
        self.block2 = _stage(16 * width, 32 * width, blocks, 2, dropout)
        self.block3 = _stage(32 * width, 64 * width, blocks, 2, dropout)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.pool = GlobalMeanPool()
        self.fc = nn.Linear(64 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def _logits(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        logits: Tensor = self.fc(self.pool(F.relu(self.bn1(x))))
        return logits


class WideResNet(ImageModel):
    """WRN-depth-width."""

    Params: ClassVar[type[Params]] = WideResNetParams
    source: ClassVar[str] = "Zagoruyko and Komodakis, Wide residual networks, BMVC 2016"

    def _network(self, channels: int, height: int, width: int, num_classes: int) -> ImageNetwork:
        params = self.params
        return WideResNetNetwork(channels, num_classes, params.depth, params.width, params.dropout)


def _stage(inputs: int, outputs: int, blocks: int, stride: int, dropout: float) -> nn.Sequential:
    first = WideBlock(inputs, outputs, stride, dropout)
    rest = (WideBlock(outputs, outputs, 1, dropout) for _ in range(blocks - 1))
    return nn.Sequential(OrderedDict(layer=nn.Sequential(first, *rest)))
