"""Where torch's global generator is needed (initialisation, dropout): seeded by purpose, and left as found."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

from robustkd.lazy import torch


def derived_seed(seed: int, purpose: str) -> int:
    """A 63-bit seed for one purpose; seeds of different purposes are unrelated."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:8], "little") >> 1


@contextmanager
def preserved_rng(device: torch.device) -> Iterator[None]:
    """Torch's global generators (the CPU's and the device's) are restored on leaving."""
    cuda = [torch.cuda.current_device() if device.index is None else device.index] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        yield
