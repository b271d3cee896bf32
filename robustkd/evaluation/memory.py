"""Work on many samples, with as many at once as the memory holds."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

Found = TypeVar("Found")


def in_memory(work: Callable[[Tensor], Found], samples: Tensor, size: int) -> list[Found]:
    """What ``work`` returns for consecutive parts of ``samples``, of ``size`` at most; half as many once memory has run out.

    Raises:
        torch.OutOfMemoryError: there is no memory for a single sample.
    """
    found: list[Found] = []
    done = 0
    while done < len(samples):
        part = samples[done : done + size]
        try:
            found.append(work(part))
        except torch.OutOfMemoryError:
            if len(part) == 1:
                raise
            full = True  # tried again outside of this block, where the exception no longer holds what was computed
        else:
            full = False
        if full:
            size = len(part) // 2
            torch.cuda.empty_cache()
            warnings.warn(
                f"memory ran out with {len(part)} samples at once; going on with {size}", RuntimeWarning, stacklevel=2
            )
        else:
            done += len(part)
    return found
