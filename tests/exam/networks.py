"""Architectures for (N, 1, 8, 8) images."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn


def cnn(
    width: int = 16, classes: int = 10, activation: Callable[[], nn.Module] = nn.ReLU, norm: bool = False, dropout: float = 0
) -> nn.Sequential:
    def block(inside: int, outside: int, stride: int) -> list[nn.Module]:
        batch_norm = [nn.BatchNorm2d(outside)] if norm else []
        return [nn.Conv2d(inside, outside, 3, stride=stride, padding=1), *batch_norm, activation()]

    end = [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(*block(1, width, 1), *block(width, 2 * width, 2), nn.Flatten(), *end, nn.Linear(32 * width, classes))


def mlp(
    width: int = 64, depth: int = 1, classes: int = 10, inputs: int = 64, activation: Callable[[], nn.Module] = nn.ReLU
) -> nn.Sequential:
    widths = [inputs, *[width] * depth]
    hidden = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), activation())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, classes))


class SoftTree(nn.Module):
    """Each inner node sends a share of the image left, by a logistic regression; the leaves hold logits."""

    def __init__(self, depth: int, sharpness: float) -> None:
        super().__init__()
        self.depth, self.sharpness = depth, sharpness
        self.nodes = nn.Linear(64, 2**depth - 1)
        self.leaves = nn.Parameter(torch.randn(2**depth, 10))

    def forward(self, x: Tensor) -> Tensor:
        left = torch.sigmoid(self.sharpness * self.nodes(x.flatten(1)))
        share = torch.ones(len(x), 1)
        for level in range(self.depth):
            here = left[:, 2**level - 1 : 2 ** (level + 1) - 1]
            share = torch.stack([share * here, share * (1 - here)], 2).flatten(1)
        return share @ self.leaves


class Transformer(nn.Module):
    """Sixteen 2x2 patches with a class token."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.places = nn.Parameter(0.02 * torch.randn(1, 17, width))
        block = nn.TransformerEncoderLayer(
            width, 2, 2 * width, dropout=0.0, batch_first=True, norm_first=True, activation="gelu"
        )
        self.blocks = nn.TransformerEncoder(block, blocks, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.cat([self.token.expand(len(x), -1, -1), self.patches(x).flatten(2).transpose(1, 2)], 1)
        return self.head(self.blocks(tokens + self.places)[:, 0])


class Prototypes(nn.Module):
    """Minus the squared distances of features to one point for each class."""

    def __init__(self, features: nn.Module, centres: Tensor, scale: float = 1.0, *, learnt: bool = True) -> None:
        super().__init__()
        self.features, self.scale = features, scale
        self.centres = nn.Parameter(centres, requires_grad=learnt)

    def forward(self, x: Tensor) -> Tensor:
        return -self.scale * (self.features(x)[:, None] - self.centres).square().sum(2)


class Mean(nn.Module):
    """The mean of several networks' logits."""

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([member(x) for member in self.members]).mean(0)


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.layers(h)
