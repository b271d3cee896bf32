"""The training data as a stream of minibatches that is a pure function of (seed, epoch)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from robustkd.contracts import Arrays, SoftArrays
from robustkd.contracts.devices import free_memory
from robustkd.contracts.random import SampleRng
from robustkd.defenses.training.data_parallel import SMALLEST_SHARE
from robustkd.defenses.training.seeding import derived_seed
from robustkd.lazy import F, torch
from robustkd.targets.memory import return_freed_memory

if TYPE_CHECKING:
    from torch import Tensor

_RESIDENT_SHARE = 0.25
"""Of a device's free memory that the data may take before they stay on the host."""


AllReduce: TypeAlias = "Callable[[Sequence[Tensor]], None]"
"""``all_reduce(tensors)`` replaces each by its mean over the processes that share a minibatch."""


def no_reduce(tensors: Sequence[Tensor]) -> None:
    """Leave the tensors as they are: with one process they are the mean already."""


@dataclass(frozen=True)
class Minibatch:
    """What one step is computed from: a minibatch, or this process's share of it.

    Attributes:
        x: (B, C, H, W) float32 in [0, 1], augmented.
        y: (B,) int64 labels.
        index: (B,) int64 positions in the training data.
        seed: the training's.
        epoch: counted from 0.
        all_reduce: for gradients that a recipe takes by itself, which must be those of the whole minibatch.
        soft: (B, K) distributions in the place of the labels, where the training data have some (``SoftArrays``).
    """

    x: Tensor
    y: Tensor
    index: Tensor
    seed: int
    epoch: int
    all_reduce: AllReduce = no_reduce
    soft: Tensor | None = None

    @property
    def goal(self) -> Tensor:
        """What the cross entropy is taken with: (B,) labels, or (B, K) distributions where there are some."""
        return self.y if self.soft is None else self.soft

    def cross_entropy(self, logits: Tensor) -> Tensor:
        """The mean cross entropy of (B, K) logits and the labels, or the distributions where there are some."""
        return F.cross_entropy(logits, self.goal)

    def rng(self, purpose: str) -> SampleRng:
        """Each sample's random stream for ``purpose`` in this epoch, whatever minibatch it is in."""
        return SampleRng(self.seed, self.index, f"{purpose}/epoch/{self.epoch}")


class Samples:
    """Labelled images where the training runs: on the device when they fit, else brought over row by row.

    They stay in their own type until they are taken: uint8 needs a quarter of the memory of float32. Images that are larger than what is
    kept in memory are decoded for each minibatch.
    """

    def __init__(self, arrays: Arrays, device: torch.device) -> None:
        self.device = device
        self.labels = torch.tensor(arrays.labels, dtype=torch.int64, device=device)
        self._soft = torch.tensor(arrays.soft, device=device) if isinstance(arrays, SoftArrays) else None
        self._host = arrays.kept()
        if self._host.large:
            return_freed_memory()
        self._resident = torch.tensor(arrays.images, device=device) if _fits(arrays, device) else None
        self._ahead: tuple[Tensor, Future[np.ndarray]] | None = None

    def __len__(self) -> int:
        return len(self._host)

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, C, H, W) float32 in [0, 1] and y (B,) at the positions ``rows``, an int64 tensor of the host."""
        there = rows.to(self.device)
        images = torch.from_numpy(self._images(rows)).to(self.device) if self._resident is None else self._resident[there]
        x = images.to(torch.float32)
        return (x / 255 if images.dtype == torch.uint8 else x), self.labels[there]

    def soft(self, rows: Tensor) -> Tensor | None:
        """(B, K) distributions at the positions ``rows``; None where there are only labels."""
        return None if self._soft is None else self._soft[rows.to(self.device)]

    def expect(self, rows: Tensor) -> None:
        """Decode the images of ``rows`` in the background, where they must be: they are taken next."""
        if self._host.large and self._resident is None:
            self._ahead = rows, _background().submit(self._decoded, rows)

    def _images(self, rows: Tensor) -> np.ndarray:
        ahead, self._ahead = self._ahead, None
        return ahead[1].result() if ahead and torch.equal(ahead[0], rows) else self._decoded(rows)

    def _decoded(self, rows: Tensor) -> np.ndarray:
        return self._host.select(rows.numpy()).images


@functools.cache
def _background() -> ThreadPoolExecutor:
    """One thread, which itself decodes several images at once."""
    return ThreadPoolExecutor(1, "robustkd-images")


def _fits(arrays: Arrays, device: torch.device) -> bool:
    if device.type == "cpu":
        return False  # they are in host memory already; a second copy would gain nothing
    if arrays.large:
        return False
    free = free_memory(device)
    return free is None or arrays.images.nbytes < _RESIDENT_SHARE * free


def epoch_order(count: int, batch_size: int, seed: int, epoch: int, smallest: int = SMALLEST_SHARE) -> list[Tensor]:
    """The rows of each minibatch of an epoch: every row once, in an order of (seed, epoch) alone.

    Fewer than ``smallest`` rows left over join the batch before them.
    """
    generator = torch.Generator().manual_seed(derived_seed(seed, f"order/{epoch}"))
    order = torch.randperm(count, generator=generator)
    parts = [order[first : first + batch_size] for first in range(0, count, batch_size)]
    if len(parts) > 1 and len(parts[-1]) < smallest:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts
