"""The networks of defenses that are made of others while they train. Importing it imports torch, so whoever builds one imports it then."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from robustkd.lazy import F, nn, torch
from robustkd.targets.activations import last_linear

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


class LowRank(nn.Module):
    """A frozen network, in evaluation mode, whose weights W become W + A B, and one layer of which learns as it is.

    Args:
        network: its parameters are frozen.
        head: the layer of it that learns.
        rank: of A B; 0 leaves W as it is.
    """

    def __init__(self, network: nn.Module, head: nn.Module, rank: int) -> None:
        super().__init__()
        self.network = network.eval()
        for weight in network.parameters():
            weight.requires_grad_(False)
        own = {id(weight) for weight in head.parameters()}
        for weight in head.parameters():
            weight.requires_grad_(True)
        self.names = [name for name, w in network.named_parameters() if w.dim() > 1 and id(w) not in own] if rank else []
        shapes = [dict(network.named_parameters())[name].flatten(1).shape for name in self.names]
        self.rows = nn.ParameterList(torch.zeros(out, rank) for out, _ in shapes)
        self.columns = nn.ParameterList(torch.randn(rank, into) / into**0.5 for _, into in shapes)

    def train(self, mode: bool = True) -> LowRank:
        """The network stays in evaluation mode: its statistics are frozen, too."""
        super().train(mode)
        self.network.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        logits: Tensor = torch.func.functional_call(self.network, self._updated(), (x,))
        return logits

    def bake(self) -> None:
        """Write the updates into the network's weights for good."""
        known = dict(self.network.named_parameters())
        with torch.no_grad():
            for name, weight in self._updated().items():
                known[name].copy_(weight)
        for weight in known.values():
            weight.requires_grad_(True)

    def _updated(self) -> dict[str, Tensor]:
        known = dict(self.network.named_parameters())
        return {
            name: known[name] + (rows @ columns).view_as(known[name])
            for name, rows, columns in zip(self.names, self.rows, self.columns, strict=True)
        }


class UnitRows(nn.Module):
    """A network whose last linear layer counts with rows of length 1 and without its bias.

    Args:
        network: (B, C, H, W) -> (B, K); shares its weights with this.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        layer = last_linear(network)
        self._name = next(name for name, part in network.named_modules() if part is layer)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        layer = self.network.get_submodule(self._name)
        assert isinstance(layer, torch.nn.Linear)
        prefix = f"{self._name}." if self._name else ""
        weights = {f"{prefix}weight": F.normalize(layer.weight, dim=1)}
        if layer.bias is not None:
            weights[f"{prefix}bias"] = torch.zeros_like(layer.bias)
        logits: Tensor = torch.func.functional_call(self.network, weights, (images,))
        return logits


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
