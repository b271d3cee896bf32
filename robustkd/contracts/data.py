"""The dataset contract. Data are NumPy arrays: listing, planning and hashing them needs no torch."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, Literal, Protocol, Self, TypeAlias

import numpy as np
from typing_extensions import TypeVar

from robustkd.contracts.errors import DataError
from robustkd.contracts.json_value import JsonObject
from robustkd.contracts.plugin import Plugin

Modality = Literal["images", "text", "text-to-image"]
"""What is attacked: a classifier of images, a language model, a model that draws what a text says."""
Inputs = Literal["any", "images"]
"""The shapes of input that a plug-in can take: all, or (C, H, W) alone, where it goes by height and width."""


class Samples(Protocol):
    """What data of every modality have in common."""

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64 in 0..K-1."""

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """(C, H, W) of one image; () where there are none."""

    def __len__(self) -> int: ...

    def select(self, rows: np.ndarray) -> Self:
        """The given rows."""

    def digest(self) -> str:
        """The SHA-256 over all that the samples are, in hexadecimal."""


@dataclass(frozen=True)
class Arrays:
    """Labelled images.

    Attributes:
        images: (N, C, H, W), or inputs of another shape, (N, *shape); uint8 in 0..255 or float32 in [0, 1].
        labels: (N,) int64 in 0..K-1.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return self.images.shape[1:]

    @property
    def large(self) -> bool:
        """Whether they are more than is held in memory at once, so that they are decoded at each look."""
        return False

    def kept(self) -> Arrays:
        """The same, decoded now for all later looks unless they are ``large``."""
        return self

    def select(self, rows: np.ndarray) -> Arrays:
        """The given rows."""
        return Arrays(self.images[rows], self.labels[rows])

    def unit(self) -> np.ndarray:
        """The images as float32 in [0, 1]."""
        images = self.images
        if images.dtype != np.uint8:
            return images.astype(np.float32, copy=False)
        unit = images.astype(np.float32)
        unit /= 255
        return unit

    def digest(self) -> str:
        """SHA-256 over shape, type and content."""
        state = hashlib.sha256()
        for array in (self.images, self.labels.astype("<i8", copy=False)):
            state.update(f"{array.dtype.str}{array.shape}".encode())
            state.update(np.ascontiguousarray(array).data)
        return state.hexdigest()

    def validated(self, name: str, num_classes: int) -> Arrays:
        """Itself, or ``DataError`` when pixels or labels are outside their ranges."""
        images, labels = self.images, self.labels
        if images.ndim < 2:
            raise DataError(
                f"data '{name}': images have shape {images.shape}",
                fix="give them as (N, channels, height, width), or other inputs as (N, *shape)",
            )
        if len(images) != len(labels) or labels.ndim != 1:
            raise DataError(
                f"data '{name}': {len(images)} images but labels of shape {labels.shape}", fix="one integer per image"
            )
        if len(images) == 0:
            raise DataError(f"data '{name}' is empty")
        if images.dtype != np.uint8:
            low, high = float(images.min()), float(images.max())
            if not (np.isfinite(low) and np.isfinite(high) and low >= -1e-6 and high <= 1 + 1e-6):
                raise DataError(
                    f"data '{name}': pixels reach from {low:.4g} to {high:.4g}, outside [0, 1]",
                    fix="scale them to [0, 1] (or store uint8), or give their 'bounds'; normalisation belongs inside the model",
                )
            if low < 0 or high > 1:  # by rounding
                images = images.clip(0, 1)
        _require_classes(labels, name, num_classes)
        return self if images is self.images else replace(self, images=images)


@dataclass(frozen=True)
class SoftArrays(Arrays):
    """Labelled images with a distribution over the classes beside each label.

    Attributes:
        soft: (N, K) float32, rows of sum 1. A defense that ``learns_soft_labels`` takes them in the place of the labels.
    """

    soft: np.ndarray

    def select(self, rows: np.ndarray) -> SoftArrays:
        """The given rows."""
        return SoftArrays(self.images[rows], self.labels[rows], self.soft[rows])

    def validated(self, name: str, num_classes: int) -> Arrays:
        """Itself, or ``DataError`` when pixels, labels or distributions are outside their ranges."""
        if self.soft.shape != (len(self.images), num_classes):
            raise DataError(
                f"data '{name}': distributions of shape {self.soft.shape} for {len(self.images)} images of {num_classes} classes",
                fix=f"give one row of {num_classes} probabilities for each image",
            )
        if not (np.isfinite(self.soft).all() and (self.soft >= 0).all() and np.allclose(self.soft.sum(1), 1, atol=1e-3)):
            raise DataError(f"data '{name}': distributions that are none", fix="give rows of probabilities, each of sum 1")
        return super().validated(name, num_classes)

    def hard(self) -> Arrays:
        """The same images with their labels alone."""
        return Arrays(self.images, self.labels)

    def digest(self) -> str:
        """SHA-256 over images, labels and distributions."""
        soft = np.ascontiguousarray(self.soft.astype("<f4", copy=False))
        return hashlib.sha256(f"{super().digest()}{soft.shape}".encode() + soft.tobytes()).hexdigest()


KEPT_BYTES = 1 << 28
"""Images that are larger than this, all together, are never held in memory at once by the platform: 256 MiB."""
_CHUNK = 256
"""Images that are decoded at once where all must be looked at."""

Remember: TypeAlias = Callable[[np.ndarray, Callable[[], str]], str]
"""``remember(rows, compute)`` is the hash of these rows: one that is known for the same files, or what ``compute()`` returns."""


class DeferredArrays(Arrays):
    """Labelled images that are decoded where they are used, and only those of the rows that were selected.

    A campaign that only attacks then never decodes its training images, and one that takes 100 of 50,000 files decodes 100. Parts of
    up to ``KEPT_BYTES`` are kept once they are decoded. A larger one is decoded again at each look, so that whoever works
    through it selects the rows that the work is on and takes ``images`` of these.

    Args:
        read: the images of some rows: (M,) int64 -> (M, C, H, W), in that order. It may raise ``DataError``.
        labels: (N,) int64 of all rows.
        sample_shape: (C, H, W).
        rows: (M,) int64, the rows that these are; all N by default.
        remember: saves the decoding where only a hash is wanted; by default nothing is remembered.
    """

    _read: Callable[[np.ndarray], np.ndarray]
    _all: np.ndarray
    _rows: np.ndarray
    _shape: tuple[int, ...]
    _remember: Remember

    def __init__(
        self,
        read: Callable[[np.ndarray], np.ndarray],
        labels: np.ndarray,
        sample_shape: tuple[int, ...],
        rows: np.ndarray | None = None,
        remember: Remember = lambda rows, compute: compute(),
    ) -> None:
        rows = np.arange(len(labels)) if rows is None else rows
        # The class is frozen, and its field ``images`` is the property below.
        vars(self).update(
            labels=labels[rows], _read=read, _all=labels, _rows=rows, _shape=tuple(sample_shape), _remember=remember
        )

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def images(self) -> np.ndarray:
        """(M, C, H, W), decoded at the first look, or at each look where they are larger than ``KEPT_BYTES``."""
        kept: np.ndarray | None = vars(self).get("_images")
        if kept is None:
            kept = self._read(self._rows)
            if kept.nbytes <= KEPT_BYTES:
                vars(self).update(_images=kept)
        return kept

    @property
    def large(self) -> bool:
        """Whether all of them, as bytes, are more than ``KEPT_BYTES``."""
        return len(self) * math.prod(self._shape) > KEPT_BYTES

    def kept(self) -> Arrays:
        """In memory, unless they are ``large``."""
        return self if self.large else Arrays(self.images, self.labels)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """(C, H, W); known without decoding anything."""
        return self._shape

    def select(self, rows: np.ndarray) -> Arrays:
        """The given rows (indices, mask or slice), still to be decoded unless they are already."""
        if "_images" in vars(self):
            return super().select(rows)
        return DeferredArrays(self._read, self._all, self._shape, self._rows[rows], self._remember)

    def digest(self) -> str:
        """That of the same images in memory; one chunk after the other, where they are large."""
        return self._remember(self._rows, self._digest_by_chunks) if self.large else super().digest()

    def _digest_by_chunks(self) -> str:
        state = hashlib.sha256()
        for first in range(0, len(self), _CHUNK):
            images = self._read(self._rows[first : first + _CHUNK])
            if first == 0:
                state.update(f"{images.dtype.str}{(len(self), *self._shape)}".encode())
            state.update(np.ascontiguousarray(images).data)
        labels = self.labels.astype("<i8", copy=False)
        state.update(f"{labels.dtype.str}{labels.shape}".encode())
        state.update(np.ascontiguousarray(labels).data)
        return state.hexdigest()

    def validated(self, name: str, num_classes: int) -> Arrays:
        """The same with the labels checked now, and the pixels when they are decoded."""
        _require_classes(self.labels, name, num_classes)

        def read(rows: np.ndarray) -> np.ndarray:
            return Arrays(self._read(rows), self._all[rows]).validated(name, num_classes).images

        return DeferredArrays(read, self._all, self._shape, self._rows, self._remember)


def _require_classes(labels: np.ndarray, name: str, num_classes: int) -> None:
    if labels.min() < 0 or labels.max() >= num_classes:
        raise DataError(
            f"data '{name}': labels reach from {labels.min()} to {labels.max()}, but there are {num_classes} classes",
            fix=f"use labels 0..{num_classes - 1}",
        )


Data = TypeVar("Data", bound=Samples, default=Arrays, covariant=True)
"""``Arrays`` of labelled images, or ``Prompts``."""


@dataclass(frozen=True)
class RawData(Generic[Data]):
    """What a dataset plug-in returns; one of prompts returns ``RawData[Prompts]``.

    Attributes:
        train: None when there is only a test part.
        test: what is attacked.
        classes: names of the K classes, or of the categories of prompts.
        benign: of prompts, harmless test requests, which a defense must still answer.
        validation: where more than the rows must be kept apart from training; None has it carved from ``train``.
        notes: sentences that are to be read with every number, such as how many rows were left out and why.
        outputs_known: whether the user said which output of a model each class is; else a class's number is its place in the alphabet, or
            what the data call it, and a model with more outputs may mean another class by it.
    """

    train: Data | None
    test: Data
    classes: tuple[str, ...]
    benign: Data | None = None
    validation: Data | None = None
    notes: tuple[str, ...] = ()
    outputs_known: bool = False


class Dataset(Plugin, ABC):
    """A dataset by name. ``load`` reads it whole; splitting and sub-sampling are the platform's.

    Attributes:
        modality: ``images`` for ``Arrays``, else ``Prompts``.
        judges: of prompts, the judges of a campaign that names none, as in its file; the first one's verdict counts.
    """

    modality: ClassVar[Modality] = "images"
    judges: ClassVar[Mapping[str, JsonObject]] = {}

    @abstractmethod
    def load(self) -> RawData[Any]:
        """Read the data; ``DataError`` with the way to get them when they are not there."""
