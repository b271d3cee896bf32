"""Several processes that train one network, each on its share of every minibatch: what ``torchrun`` starts.

Each process makes the examples and the gradient of its share. Their mean, weighted by the shares, is the gradient of the whole
minibatch, so all processes take the same step and hold the same weights. BatchNorm normalises each share by itself, as in torch's
DistributedDataParallel, and its running statistics are the mean of the shares'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

SMALLEST_SHARE = 2
"""Samples a process has at least: the batch statistics of one sample are undefined."""


@dataclass(frozen=True)
class World:
    """This process's rank among those that train together; alone where there is no process group."""

    rank: int = 0
    size: int = 1

    @classmethod
    def here(cls) -> World:
        """The processes that this one trains with."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return cls(torch.distributed.get_rank(), torch.distributed.get_world_size())
        return cls()

    @property
    def is_main_process(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def share(self, rows: Tensor) -> Tensor:
        """This process's part of the rows of a minibatch; the parts' sizes differ by one at most."""
        return rows.tensor_split(self.size)[self.rank]

    def average(self, tensors: Sequence[Tensor], weight: float) -> None:
        """Replace each tensor by its mean over the processes, in one exchange.

        Args:
            tensors: floating point, of the same shapes in each process.
            weight: this process's; they add up to 1.
        """
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.detach().float().reshape(-1) for tensor in tensors]) * weight
        torch.distributed.all_reduce(flat)
        for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.detach().copy_(mean.view_as(tensor))

    def total(self, counts: Tensor) -> Tensor:
        """The sum of ``counts`` over the processes."""
        if self.size > 1:
            torch.distributed.all_reduce(counts)
        return counts


def synced_tensors(module: nn.Module) -> list[Tensor]:
    """What a training step changed or is about to change by: the gradients, and BatchNorm's running statistics."""
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    return [*gradients, *(buffer for buffer in module.buffers() if buffer.is_floating_point())]
