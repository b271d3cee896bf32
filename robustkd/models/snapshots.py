"""The networks that one network was, at different times: each is a sub-network, and the last of them answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from robustkd.lazy import nn
from robustkd.models.sub_networks import SubNetworks

if TYPE_CHECKING:
    from torch import Tensor

UNSEEN = -1e4
"""The logit of a class that was not there yet: below any other, and finite, so that every loss is."""


class Masked(nn.Module):
    """A network whose outputs for some classes cannot be chosen.

    Args:
        network: (B, C, H, W) -> (B, K); shares its weights with this.
        seen: the classes that it may answer.
        num_classes: K.
    """

    def __init__(self, network: nn.Module, seen: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.network = network
        self.unseen = [number for number in range(num_classes) if number not in set(seen)]

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        logits: Tensor = self.network(images)
        if not self.unseen:
            return logits
        hidden = logits.new_zeros(logits.shape[1])
        hidden[self.unseen] = 1
        return logits.masked_fill(hidden.bool(), UNSEEN)


class Snapshots(SubNetworks):
    """What a network was after each task.

    Args:
        networks: in order of time; each answers the classes that it had seen.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.names = tuple(f"after-{number}" for number in range(1, len(networks) + 1))
        self.multiply_adds = (1,) * len(networks)  # each costs the same

    def _answer(self, number: int, x: Tensor) -> Tensor:
        logits: Tensor = self.networks[number](x)
        return logits

    def _logits(self, x: Tensor) -> Tensor:
        return self._answer(len(self.networks) - 1, x)
