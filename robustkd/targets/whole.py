"""Networks that a file holds whole, in one mode and perhaps for batches of one size."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Whole(nn.Module):
    """A network that was saved in one mode and has no other: of ``train`` and ``eval`` it is not told.

    Args:
        network: (B, C, H, W) -> (B, K).
        batch: the only B that it takes; None where it takes any.
    """

    def __init__(self, network: nn.Module, batch: int | None) -> None:
        super().__init__()
        self.network = network
        self._batch = batch

    def train(self, mode: bool = True) -> Whole:
        """Set this module's own flag alone."""
        self.training = mode
        return self

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K), for any B."""
        return in_batches(self.network, images, self._batch)


def in_batches(network: Callable[[Tensor], Tensor], images: Tensor, size: int | None) -> Tensor:
    """The network's answers, where it takes batches of one size: the last one is filled up."""
    if size is None or size == len(images):
        return network(images)
    parts = []
    for part in images.split(size):
        full = torch.cat([part, part[-1:].expand(size - len(part), *part.shape[1:])])
        parts.append(network(full)[: len(part)])
    return torch.cat(parts)
