"""Networks that a file holds whole, in one mode and perhaps for batches of one size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Whole(nn.Module):
    """A network that was saved in one mode and has no other: of ``train`` and ``eval`` it is not told.

    Args:
        network: (B, C, H, W) -> (B, K), or several tensors in a mapping, tuple or list.
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

    def forward(self, images: Tensor) -> Any:
        """(B, C, H, W) -> what the network returns, for any B."""
        return in_batches(self.network, images, self._batch)


def in_batches(network: Callable[[Tensor], Any], images: Tensor, size: int | None) -> Any:
    """The network's answers, where it takes batches of one size: the last one is filled up.

    What it answers with is a tensor of which a row belongs to an image, or a mapping, tuple or list of such.
    """
    if size is None or size == len(images):
        return network(images)
    parts = []
    for part in images.split(size):
        full = torch.cat([part, part[-1:].expand(size - len(part), *part.shape[1:])])
        parts.append(network(full))
    return _joined(parts, len(images))


def _joined(parts: Sequence[Any], rows: int) -> Any:
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts))[:rows]
    if isinstance(first, Mapping):
        return {key: _joined([part[key] for part in parts], rows) for key in first}
    return [_joined(places, rows) for places in zip(*parts, strict=True)]
