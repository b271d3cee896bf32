"""A network that answers by the directions of its last layer's rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustkd.lazy import F, nn, torch
from robustkd.targets.activations import last_linear

if TYPE_CHECKING:
    from torch import Tensor


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
