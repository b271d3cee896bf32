"""The dataset contract. Data are NumPy arrays: listing, planning and hashing them needs no torch."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, Protocol, Self

import numpy as np
from typing_extensions import TypeVar

from robustkd.contracts.errors import DataError
from robustkd.contracts.plugin import Plugin

Modality = Literal["images", "text", "text-to-image"]
"""What is attacked: a classifier of images, a language model, a model that draws what a text says."""


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
        """SHA-256 over everything."""


@dataclass(frozen=True)
class Arrays:
    """Labelled images.

    Attributes:
        images: (N, C, H, W), uint8 in 0..255 or float32 in [0, 1].
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

    def select(self, rows: np.ndarray) -> Arrays:
        """The given rows."""
        return Arrays(self.images[rows], self.labels[rows])

    def unit(self) -> np.ndarray:
        """The images as float32 in [0, 1]."""
        if self.images.dtype == np.uint8:
            return self.images.astype(np.float32) / 255
        return self.images.astype(np.float32, copy=False)

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
        if images.ndim != 4:
            raise DataError(f"data '{name}': images have shape {images.shape}", fix="give them as (N, channels, height, width)")
        if len(images) != len(labels) or labels.ndim != 1:
            raise DataError(
                f"data '{name}': {len(images)} images but labels of shape {labels.shape}", fix="one integer per image"
            )
        if len(images) == 0:
            raise DataError(f"data '{name}' is empty")
        if images.dtype != np.uint8:
            low, high = float(images.min()), float(images.max())
            if not (np.isfinite(low) and np.isfinite(high) and low >= 0 and high <= 1):
                raise DataError(
                    f"data '{name}': pixels reach from {low:.4g} to {high:.4g}, outside [0, 1]",
                    fix="scale them to [0, 1] (or store uint8); normalisation belongs inside the model",
                )
        if labels.min() < 0 or labels.max() >= num_classes:
            raise DataError(
                f"data '{name}': labels reach from {labels.min()} to {labels.max()}, but there are {num_classes} classes",
                fix=f"use labels 0..{num_classes - 1}",
            )
        return self


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
    """

    train: Data | None
    test: Data
    classes: tuple[str, ...]
    benign: Data | None = None
    validation: Data | None = None


class Dataset(Plugin, ABC):
    """A dataset by name. ``load`` reads it whole; splitting and sub-sampling are the platform's.

    Attributes:
        modality: ``images`` for ``Arrays``, else ``Prompts``.
        judges: of prompts, the judges of a campaign that names none, as in its file; the first one's verdict counts.
    """

    modality: ClassVar[Modality] = "images"
    judges: ClassVar[dict[str, dict[str, Any]]] = {}

    @abstractmethod
    def load(self) -> RawData[Any]:
        """Read the data; ``DataError`` with the way to get them when they are not there."""
