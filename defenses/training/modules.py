"""The networks of defenses that are made of others while they train. Importing it imports torch, so whoever builds one imports it then."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from robustkd.lazy import nn, torch

if TYPE_CHECKING:
    from torch import Tensor


class Replaced(nn.Module):
    """A network with some of its parameters and buffers replaced."""

    def __init__(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.module, self.tensors = module, dict(tensors)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K), computed with the replaced tensors."""
        logits: Tensor = torch.func.functional_call(self.module, self.tensors, (x,))
        return logits


class WithAuxiliary(nn.Module):
    """A student and the parts that are trained with it, which answers as the student."""

    def __init__(self, student: nn.Module, parts: dict[str, nn.Module]) -> None:
        super().__init__()
        self.student, self.parts = student, nn.ModuleDict(parts)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        logits: Tensor = self.student(images)
        return logits


class SideBySide(nn.Module):
    """(B, C, H, W) -> (B, 2 K): the logits of two networks."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        """The first one's, then the second one's."""
        return torch.cat([self.first(x), self.second(x)], 1)


class LinearInOneLogit(nn.Module):
    """Stands for a network on images near given ones: one logit of each sample is linear around its image, the others are constant.

    Args:
        images: (B, C, H, W), which the later inputs are near, in their order.
        logits: (B, K) of the network there.
        gradient: (B, C, H, W) of each sample's chosen logit.
        chosen: (B,) int64, its place.
    """

    def __init__(self, images: Tensor, logits: Tensor, gradient: Tensor, chosen: Tensor) -> None:
        super().__init__()
        self.images, self.logits, self.gradient, self.chosen = images, logits, gradient, chosen

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        moved = ((x - self.images) * self.gradient).flatten(1).sum(1)
        return self.logits.scatter_add(1, self.chosen[:, None], moved[:, None].to(self.logits.dtype))
