"""Work on many samples, with as many at once as the memory holds."""

from __future__ import annotations

import ctypes
import functools
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from robustkd.contracts.devices import empty_cache
from robustkd.contracts.errors import out_of_memory
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

Found = TypeVar("Found")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_LARGEST_THRESHOLD = 32 << 20  # that glibc takes
_KEPT = 256 << 20


def keep_freed_memory() -> None:
    """From now on, this process keeps up to 256 MiB that it has freed, in the place of returning them to the system.

    The C library of Linux returns what is free at the end of its heap as soon as it is a few MiB. Each pass of a network then takes
    all its pages from the system anew, which can take as long as the pass. For processes of robustkd's own.
    """
    _set_allocator({_M_MMAP_THRESHOLD: _LARGEST_THRESHOLD, _M_TRIM_THRESHOLD: _KEPT})


@functools.cache
def return_freed_memory() -> None:
    """From now on, blocks of a MiB and more go back to the system when they are freed.

    The C library of Linux raises that limit to 32 MiB as it goes, and what is smaller stays in holes of a heap that grows
    with the work done: by 300 MiB over 2,000 images of 224 x 224. It costs a little time, so it is for data that are larger than the
    memory.
    """
    _set_allocator({_M_MMAP_THRESHOLD: 1 << 20, _M_TRIM_THRESHOLD: 2 << 20})


def _set_allocator(options: Mapping[int, int]) -> None:
    """Set options of glibc's allocator; another C library is left alone."""
    with suppress(AttributeError, OSError, TypeError):  # TypeError: Windows has no library of this process
        for option, value in options.items():
            ctypes.CDLL(None).mallopt(option, value)


def bytes_for_backward(target: Callable[[Tensor], Tensor], sample: Tensor) -> int:
    """What a forward pass of (1, *shape) keeps for the backward pass; 0 of a target that does not bear a sample alone."""
    kept: dict[int, int] = {}

    def noted(tensor: Tensor) -> Tensor:
        if not tensor.is_leaf:  # weights are there anyway
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with suppress(Exception), torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(noted, lambda tensor: tensor):
        target(sample.detach().clone().requires_grad_())
        return sum(kept.values())
    return 0


def in_memory(work: Callable[[Tensor], Found], samples: Tensor, size: int) -> list[Found]:
    """What ``work`` returns for consecutive parts of ``samples``, of ``size`` at most; half as many once memory has run out.

    Raises:
        torch.OutOfMemoryError, RuntimeError: there is no memory for a single sample.
    """

    def part(first: int, count: int) -> tuple[int, Found]:
        return count, work(samples[first : first + count])

    found: list[Found] = []
    done = 0
    while done < len(samples):
        wanted = min(size, len(samples) - done)
        count, result = with_fewer(partial(part, done), wanted)
        found.append(result)
        done += count
        if count < wanted:
            size = count
    return found


def with_fewer(work: Callable[[int], Found], size: int) -> Found:
    """What ``work`` returns that is to take at most ``size`` samples at once; half as many each time that memory runs out.

    Raises:
        torch.OutOfMemoryError, RuntimeError: there is no memory for a single sample.
    """
    while True:
        try:
            return work(size)
        except Exception as error:
            if size == 1 or not out_of_memory(error):
                raise
        # Outside of the block above, where the exception no longer holds what was computed.
        empty_cache()
        warnings.warn(f"memory ran out with {size} samples at once; going on with {size // 2}", RuntimeWarning, stacklevel=2)
        size //= 2
