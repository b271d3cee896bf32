"""Random numbers that belong to a sample, not to a batch.

A sample's attack must not depend on which other samples shared its batch, on their order, or on the device. So random
numbers are a pure function of (seed, sample index, stream, draw): a counter-based generator, SplitMix64
(Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014), in integer tensor operations that
give the same bits on every device.
"""

from __future__ import annotations

import functools
import hashlib
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from robustkd.contracts.devices import accelerator
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of torch, NumPy and Python for the block, and put them back as they were after it."""
    states = random.getstate(), np.random.get_state()
    devices, device_type = _generators_in_use()
    with torch.random.fork_rng(devices, device_type=device_type):
        seed_global(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


@contextmanager
def preserved_rng(device: torch.device) -> Iterator[None]:
    """Torch's global generators (the CPU's and the device's) are restored on leaving."""
    own = [] if device.type == "cpu" else [torch.accelerator.current_device_index() if device.index is None else device.index]
    with torch.random.fork_rng(devices=own, device_type=device.type):
        yield


def seed_global(seed: int) -> None:
    """Seed the global generators of torch, NumPy and Python."""
    seed_torch(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def seed_torch(seed: int) -> None:
    """Seed torch's global generators: the CPU's, and those of the accelerator where there is one.

    ``torch.manual_seed`` does the same, and for each backend that has not begun it also writes down the caller's stack, which
    costs as much as a pass of a small network; its first call imports torch's compiler.
    """
    if _not_begun(kind := accelerator()):
        torch.manual_seed(seed)  # the accelerator's generators are seeded when it begins
        return
    torch.default_generator.manual_seed(seed)
    if kind is not None:
        module = torch.get_device_module(kind)
        (getattr(module, "manual_seed_all", None) or module.manual_seed)(seed)


def _generators_in_use() -> tuple[Sequence[int], str]:
    """The devices and their type that ``fork_rng`` restores; not those of an accelerator before its first use, as it would take memory."""
    kind = accelerator()
    if kind is None or _not_begun(kind):
        return (), "cpu"
    return range(torch.accelerator.device_count()), kind.type


def _not_begun(kind: torch.device | None) -> bool:
    begun = getattr(torch.get_device_module(kind), "is_initialized", None) if kind is not None else None
    return begun is not None and not begun()


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


_VALUES = 2**22
"""How many uniform numbers are drawn at once: their bits take several times their memory."""

_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX1 = _signed(0xBF58476D1CE4E5B9)
_MIX2 = _signed(0x94D049BB133111EB)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    # int64's >> copies the sign bit; the mask makes it the logical shift that the algorithm needs.
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _drawn_in(dtype: torch.dtype) -> torch.dtype:
    """Numbers of 16 bits are drawn in float32: a bfloat16 has 8 bits of the 24, so one of 512 uniform ones would be 1."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift_right(z, 30)) * _MIX1
    z = (z ^ _shift_right(z, 27)) * _MIX2
    return z ^ _shift_right(z, 31)


def _uniform(bits: Tensor, low: float, high: float, dtype: torch.dtype) -> Tensor:
    unit = _shift_right(bits, 40).to(_drawn_in(dtype)) / (1 << 24)
    drawn = low + (high - low) * unit
    if drawn.dtype == dtype:
        return drawn
    above = torch.tensor(high, dtype=dtype)  # which the last values are rounded to
    return drawn.to(dtype).clamp(max=torch.nextafter(above, torch.full_like(above, low)).item())


def _offset(seed: int, stream: str) -> int:
    return _signed(int.from_bytes(hashlib.sha256(f"{seed}/{stream}".encode()).digest()[:8], "little"))


class SampleRng:
    """One independent random stream for each sample of a batch.

    Args:
        seed: the campaign's seed of this cell.
        index: (B,) int64, each sample's position in its data set; equal positions give equal streams.
        stream: names a purpose; streams of different names are independent.
    """

    def __init__(self, seed: int, index: Tensor, stream: str = "") -> None:
        self.seed = seed
        self.stream = stream
        self.index = index
        self._draws = 0

    @functools.cached_property
    def _keys(self) -> Tensor:  # not of a stream that is only forked
        return _mix(self.index.to(torch.int64) * _GOLDEN + _offset(self.seed, self.stream))

    def fork(self, name: str | int) -> SampleRng:
        """A stream of the same samples for another purpose, independent of this one and of its draws so far."""
        return SampleRng(self.seed, self.index, f"{self.stream}/{name}")

    def select(self, rows: Tensor) -> SampleRng:
        """The streams of some rows (indices or mask), at the same draw."""
        chosen = SampleRng.__new__(SampleRng)
        chosen.seed, chosen.stream, chosen._draws = self.seed, self.stream, self._draws
        chosen.index = self.index[rows]
        if "_keys" in vars(self):  # else they are made when they are needed
            chosen._keys = self._keys[rows]
        return chosen

    def bits(self, shape: Sequence[int]) -> Tensor:
        """(B, *shape) int64: 64 random bits each; advances every stream by one draw."""
        return next(self._bits_in_parts(shape, len(self._keys)))

    def _bits_in_parts(self, shape: Sequence[int], rows: int) -> Iterator[Tensor]:
        """The same, of so many rows at a time."""
        self._draws += 1
        counter = torch.arange(1, math.prod(shape) + 1, device=self._keys.device) * _GOLDEN
        for begin in range(0, max(1, len(self._keys)), max(1, rows)):
            keys = self._keys[begin : begin + max(1, rows)]
            draw = _mix(keys + _signed(self._draws * (_GOLDEN % (1 << 64)) % (1 << 64)))
            yield _mix(draw.unsqueeze(1) + counter).reshape(len(draw), *shape)

    def bits_of_forks(self, names: Sequence[str | int], shape: Sequence[int]) -> Tensor:
        """(B, N, *shape) the first ``bits`` of the forks called ``names``, in one go: of a few numbers each, that takes as long as one."""
        forks = SampleRng.__new__(SampleRng)
        forks.seed, forks.stream, forks._draws = self.seed, self.stream, 0
        forks.index = self.index.repeat_interleave(len(names))
        offsets = torch.tensor([_offset(self.seed, f"{self.stream}/{name}") for name in names], device=self.index.device)
        forks._keys = _mix((self.index.to(torch.int64) * _GOLDEN).unsqueeze(1) + offsets).flatten()
        return forks.bits(shape).reshape(len(self.index), len(names), *shape)

    def uniform(self, shape: Sequence[int], low: float = 0.0, high: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        """(B, *shape) uniform in [low, high); float32 unless ``dtype`` says otherwise."""
        dtype = dtype or torch.float32
        parts = self._bits_in_parts(shape, _VALUES // max(1, math.prod(shape)))
        drawn = [_uniform(bits, low, high, dtype) for bits in parts]
        return drawn[0] if len(drawn) == 1 else torch.cat(drawn)

    def normal(self, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
        """(B, *shape) standard normal (Box-Muller); float32 unless ``dtype`` says otherwise."""
        dtype = dtype or torch.float32
        radius = (-2 * torch.log1p(-self.uniform(shape, dtype=_drawn_in(dtype)))).sqrt()
        return (radius * torch.cos(2 * math.pi * self.uniform(shape, dtype=_drawn_in(dtype)))).to(dtype)

    def integers(self, shape: Sequence[int], high: int) -> Tensor:
        """(B, *shape) int64 uniform in {0, .., high - 1}; the bias of the modulus is below high / 2^63."""
        return _shift_right(self.bits(shape), 1) % high
