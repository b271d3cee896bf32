"""Where in an image the attacker may change pixels: in a mask, in channels, or in a patch."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from typing_extensions import override

from robustkd.contracts.errors import UsageError
from robustkd.contracts.json_value import JsonValue
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

Placing = Literal["given", "chosen"]
"""Who decides where a region lies: it is given (by the threat model or by chance), or the attacker chooses it."""

UNCHANGED = 1e-6
"""By how much a pixel outside the region may differ, for float32 rounding."""


class Region(ABC):
    """Where pixels may change; elsewhere an image must stay as it is."""

    @property
    def placing(self) -> Placing:
        """Who decides where the region lies: the file, chance, or the attacker."""
        return "given"

    @property
    @abstractmethod
    def stored(self) -> dict[str, JsonValue]:
        """JSON values, under which results and cell identities file it; ``stored_region`` is the inverse."""

    @abstractmethod
    def require_fits(self, shape: Sequence[int]) -> None:
        """Raise UsageError unless it is a region of inputs of this shape."""

    @abstractmethod
    def drawn(self, shape: Sequence[int], rng: SampleRng) -> Tensor:
        """(B, ..) bool that broadcasts over inputs (B, *shape): what may change of each sample of ``rng``.

        Raises:
            UsageError: the attacker chooses it, so that there is no such answer.
        """

    def kept(self, difference: Tensor, movable: Tensor | None) -> Tensor:
        """(B,) bool, whether (B, *shape) differences are 0 outside it.

        Args:
            difference: between returned and clean inputs.
            movable: what ``drawn`` has returned for these samples.
        """
        if movable is None:
            raise UsageError(f"it is not known where {self} lies", fix="give batch.placed(threat, seed)")
        return ~((difference.abs() > UNCHANGED) & ~movable).flatten(1).any(1)


@dataclass(frozen=True)
class Mask(Region):
    """A fixed set of pixels.

    Attributes:
        file: its name, for messages.
        sha256: of the shape and the values.
        share: of the pixels that may change.
        pixels: (H, W) or (C, H, W) bool, or of the inputs' own shape; None of one that was read from results.
    """

    file: str
    sha256: str
    share: float
    pixels: np.ndarray | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, pixels: object, file: str = "mask") -> Mask:
        """From an array: what is not 0 may change.

        Raises:
            UsageError: nothing may change, or it is no array of numbers.
        """
        values = np.ascontiguousarray(np.asarray(pixels) != 0)
        if not values.any():
            raise UsageError(f"mask '{file}': no pixel may change", fix="pixels that are not 0 may change, the others may not")
        found = hashlib.sha256(repr(values.shape).encode() + np.packbits(values).tobytes()).hexdigest()
        return cls(file, found, round(float(values.mean()), 6), values)

    @classmethod
    def read(cls, path: Path) -> Mask:
        """From a .npy, .npz (one array) or .png file (grey, or the mean of its colours).

        Raises:
            UsageError: it cannot be read.
        """
        try:
            if path.suffix == ".png":
                from PIL import Image  # late: needed for pictures alone

                with Image.open(path) as picture:
                    return cls.of(np.asarray(picture.convert("L")), path.name)
            read = np.load(path, allow_pickle=False)
            if isinstance(read, np.ndarray):
                return cls.of(read, path.name)
            if len(read.files) != 1:
                raise ValueError(f"it holds {len(read.files)} arrays")
            return cls.of(read[read.files[0]], path.name)
        except (OSError, ValueError, EOFError) as error:
            raise UsageError(
                f"mask '{path}' cannot be read: {error}", fix="give a .png, .npy or .npz file with one array"
            ) from error

    @property
    @override
    def stored(self) -> dict[str, JsonValue]:
        return {"mask": self.file, "sha256": self.sha256, "share": self.share}

    @override
    def require_fits(self, shape: Sequence[int]) -> None:
        own = () if self.pixels is None else self.pixels.shape
        if tuple(own) not in (tuple(shape), tuple(shape[1:]), (1, *shape[1:])):
            raise UsageError(
                f"mask '{self.file}' has the shape {tuple(own)}, the inputs have {tuple(shape)}",
                fix="give (H, W) or (C, H, W), of the images' size",
            )

    @override
    def drawn(self, shape: Sequence[int], rng: SampleRng) -> Tensor:
        self.require_fits(shape)
        pixels = torch.as_tensor(self.pixels, device=rng.index.device)
        pixels = pixels if pixels.ndim == len(shape) else pixels.unsqueeze(0)
        return pixels.expand(len(rng.index), *pixels.shape)

    def __str__(self) -> str:
        return f"in {self.file} ({100 * self.share:.3g} %)"


@dataclass(frozen=True)
class Channels(Region):
    """Whole channels, counted from 0; of inputs that are no images, features."""

    numbers: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.numbers or any(type(one) is not int or one < 0 for one in self.numbers):
            raise UsageError(f"channels are {self.numbers!r}", fix="give a list of numbers, counted from 0: channels: [0, 2]")
        object.__setattr__(self, "numbers", tuple(sorted(set(self.numbers))))

    @property
    @override
    def stored(self) -> dict[str, JsonValue]:
        return {"channels": list(self.numbers)}

    @override
    def require_fits(self, shape: Sequence[int]) -> None:
        if self.numbers[-1] >= shape[0]:
            raise UsageError(f"there is no channel {self.numbers[-1]} in inputs of the shape {tuple(shape)}")

    @override
    def drawn(self, shape: Sequence[int], rng: SampleRng) -> Tensor:
        self.require_fits(shape)
        chosen = torch.zeros(shape[0], dtype=torch.bool, device=rng.index.device)
        chosen[list(self.numbers)] = True
        return chosen.view(1, -1, *([1] * (len(shape) - 1))).expand(len(rng.index), *([-1] * len(shape)))

    def __str__(self) -> str:
        return f"in channel{'' if len(self.numbers) == 1 else 's'} {', '.join(map(str, self.numbers))}"


@dataclass(frozen=True)
class Patch(Region):
    """A rectangle of all channels.

    Attributes:
        size: its side in pixels, (height, width), or, below 1, the share of the image that a square takes.
        place: ``worst`` where the attacker chooses it for each sample, ``random`` where the seed draws it for each sample, or
            (top, left), in pixels from 0.
    """

    size: float | tuple[int, int]
    place: Literal["worst", "random"] | tuple[int, int] = "worst"

    def __post_init__(self) -> None:
        for name in ("size", "place"):
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))
        size, place = self.size, self.place
        sides = size if isinstance(size, tuple) else (size,)
        whole = len(sides) in (1, 2) and all(type(side) is int and side >= 1 for side in sides)
        if not whole and not (type(size) is float and (0 < size < 1 or (size.is_integer() and size >= 1))):
            raise UsageError(
                f"the size of a patch is {size!r}",
                fix="give pixels (5), height and width ([5, 7]) or a share of the area (0.05)",
            )
        if place not in ("worst", "random") and not (
            isinstance(place, tuple) and len(place) == 2 and all(type(one) is int and one >= 0 for one in place)
        ):
            raise UsageError(f"the place of a patch is {place!r}", fix="give worst, random, or [top, left] in pixels")

    @property
    @override
    def placing(self) -> Placing:
        return "chosen" if self.place == "worst" else "given"

    @property
    @override
    def stored(self) -> dict[str, JsonValue]:
        size, place = (list(one) if isinstance(one, tuple) else one for one in (self.size, self.place))
        return {"patch": size, "place": place}

    def sides(self, shape: Sequence[int]) -> tuple[int, int]:
        """Height and width in pixels, in images of this shape."""
        if isinstance(self.size, tuple):
            return self.size
        side = int(self.size) if self.size >= 1 else max(1, round((self.size * shape[1] * shape[2]) ** 0.5))
        return side, side

    @override
    def require_fits(self, shape: Sequence[int]) -> None:
        if len(shape) != 3:
            raise UsageError(f"a patch is of images (C, H, W), and the inputs have the shape {tuple(shape)}")
        height, width = self.sides(shape)
        top, left = self.place if isinstance(self.place, tuple) else (0, 0)
        if top + height > shape[1] or left + width > shape[2]:
            raise UsageError(
                f"a patch of {height} x {width} pixels at row {top}, column {left} is not inside images of {shape[1]} x {shape[2]}",
                fix="make it smaller, or place it elsewhere",
            )

    @override
    def drawn(self, shape: Sequence[int], rng: SampleRng) -> Tensor:
        self.require_fits(shape)
        if self.place == "worst":
            raise UsageError(f"the attacker chooses where {self} lies", fix="use an attack that does, such as patch-pgd")
        if isinstance(self.place, tuple):
            places = torch.tensor(self.place, device=rng.index.device).expand(len(rng.index), 2)
        else:
            height, width = self.sides(shape)
            room = torch.tensor([shape[1] - height + 1, shape[2] - width + 1], device=rng.index.device)
            places = (rng.uniform((2,)) * room).long().minimum(room - 1)
        return rectangles(places, self.sides(shape), shape)

    @override
    def kept(self, difference: Tensor, movable: Tensor | None) -> Tensor:
        if self.place != "worst":
            return super().kept(difference, movable)
        changed = (difference.abs() > UNCHANGED).any(1)
        within = [extent(changed.any(2 - axis)) <= side for axis, side in enumerate(self.sides(difference.shape[1:]))]
        return within[0] & within[1]

    def __str__(self) -> str:
        size = f"{self.size[0]} x {self.size[1]}" if isinstance(self.size, tuple) else f"{self.size:g} x {self.size:g}"
        if not isinstance(self.size, tuple) and self.size < 1:
            size = f"{100 * self.size:.3g} %"
        where = f"at ({self.place[0]}, {self.place[1]})" if isinstance(self.place, tuple) else f"at the {self.place} place"
        return f"in a patch of {size} {where.replace('the random', 'a random')}"


def rectangles(places: Tensor, sides: tuple[int, int], shape: Sequence[int]) -> Tensor:
    """(B, 1, H, W) bool, one rectangle for each sample.

    Args:
        places: (B, 2) int64, the top row and the left column of each.
        sides: height and width.
        shape: (C, H, W) of the images.
    """
    down = torch.arange(shape[1], device=places.device) - places[:, :1]
    right = torch.arange(shape[2], device=places.device) - places[:, 1:]
    rows, columns = (down >= 0) & (down < sides[0]), (right >= 0) & (right < sides[1])
    return (rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1)


def extent(line: Tensor) -> Tensor:
    """(B, N) bool -> (B,), from the first True of each row to its last; 0 where there is none."""
    number = torch.arange(1, line.shape[1] + 1, device=line.device)
    last = (number * line).amax(1)
    first = ((line.shape[1] + 1 - number) * line).amax(1)  # counted from the end
    return torch.where(line.any(1), last + first - line.shape[1], 0)


def stored_region(stored: Mapping[str, Any] | None) -> Region | None:
    """The region that results file under these values, or None for None: the inverse of ``stored``.

    Raises:
        UsageError: there is no such region.
    """
    if stored is None:
        return None
    if stored.keys() == {"mask", "sha256", "share"}:
        return Mask(stored["mask"], stored["sha256"], stored["share"])
    return region_of(stored)


def region_of(given: Mapping[str, Any] | Region, folder: Path | None = None) -> Region:
    """A region as it is written: ``{patch: 5, place: worst}``, ``{channels: [0]}`` or ``{mask: file.png}``.

    Args:
        given: one of these, or a region, which is returned.
        folder: what the file of a mask is relative to.

    Raises:
        UsageError: it is none of these.
    """
    if isinstance(given, Region):
        return given
    keys = set(given) if isinstance(given, Mapping) else set()
    if keys == {"channels"}:
        numbers = given["channels"]
        return Channels(tuple(numbers) if isinstance(numbers, list | tuple) else (numbers,))
    if "patch" in keys and keys <= {"patch", "place"}:
        return Patch(given["patch"], given.get("place", "worst"))
    if keys == {"mask"}:
        mask = given["mask"]
        return Mask.read((folder or Path()) / mask) if isinstance(mask, str | Path) else Mask.of(mask)
    raise UsageError(
        f"where is {given!r}", fix="give {patch: 5, place: worst}, {channels: [0]} or {mask: file.png}: one of these"
    )
