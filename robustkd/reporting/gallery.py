"""Adversarial images beside the clean ones: which to show, and how to draw a perturbation."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from robustkd.reporting.transcripts import PromptItem

PER_PAIR = 4
AT_MOST = 48
MAX_SIDE = 80
"""Larger images are shrunk: 48 items of three pictures each must stay a small part of a 5 MB page."""
FACTORS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


@dataclass(frozen=True, eq=False)
class GalleryItem:
    """One attacked sample.

    Attributes:
        clean, adversarial: (C, H, W) float32 in [0, 1]; one channel is grey, three are RGB.
        label, before, after: the true class, the prediction on the clean and on the adversarial image; number or name.
        distance: of the two images in ``norm``, or what a change of another kind spends of its budget.
    """

    defense: str
    attack: str
    seed: int
    clean: np.ndarray
    adversarial: np.ndarray
    label: int | str
    before: int | str
    after: int | str
    distance: float
    norm: str

    @property
    def broken(self) -> bool:
        """Whether the attack turned a right answer into a wrong one."""
        return self.before == self.label and self.after != self.label

    @property
    def outcome(self) -> str:
        """What happened, in a word or two."""
        if self.before != self.label:
            return "misclassified before the attack"
        return "broken" if self.broken else "held"

    @property
    def factor(self) -> int:
        """By how much ``perturbation`` is amplified: the largest round number that keeps it in range."""
        largest = float(np.abs(self.adversarial - self.clean).max(initial=0.0))
        return max((f for f in FACTORS if f * largest <= 0.5 + 1e-6), default=1) if largest > 0 else 1

    def perturbation(self) -> np.ndarray:
        """(C, H, W) in [0, 1]: the amplified difference, mid grey where nothing changed."""
        changed: np.ndarray = np.clip(0.5 + self.factor * (self.adversarial - self.clean), 0.0, 1.0)
        return changed


Item = GalleryItem | PromptItem
Shown = TypeVar("Shown", GalleryItem, PromptItem)


def selected(items: Iterable[Item], per_pair: int = PER_PAIR, at_most: int = AT_MOST) -> list[Item]:
    """At most ``per_pair`` items of each defense x attack and ``at_most`` in all, grouped by pair.

    When there are too many pairs, each gets its first item before any gets its second.
    """
    pairs: dict[tuple[str, str], list[Item]] = {}
    for item in items:
        pairs.setdefault((item.defense, item.attack), []).append(item)
    ranked = [(rank, n, item) for n, group in enumerate(pairs.values()) for rank, item in enumerate(group[:per_pair])]
    kept = sorted(ranked, key=lambda entry: entry[:2])[:at_most]
    return [item for _, _, item in sorted(kept, key=lambda entry: (entry[1], entry[0]))]


def pixels(image: np.ndarray) -> np.ndarray:
    """(C, H, W) in [0, 1] as (H, W, 3) bytes; other than one or three channels are averaged to grey."""
    image = np.nan_to_num(np.asarray(image, dtype=np.float32))
    if image.ndim != 3:
        raise ValueError(f"a gallery image has shape (C, H, W), got {image.shape}")
    if image.shape[0] != 3:
        image = np.repeat(image.mean(axis=0, keepdims=True), 3, axis=0)
    levels: np.ndarray = np.rint(np.clip(image, 0.0, 1.0) * 255).astype(np.uint8).transpose(1, 2, 0)
    return levels


def thumbnail(image: np.ndarray) -> np.ndarray:
    """``pixels`` of the image, shrunk to at most ``MAX_SIDE``."""
    shrink = math.ceil(max(image.shape[1:]) / MAX_SIDE)
    return np.ascontiguousarray(pixels(image)[::shrink, ::shrink])  # every n-th: averaging would wash a perturbation out


def data_uri(image: np.ndarray) -> str:
    """A (C, H, W) image as a PNG in a data URI; enlarging a small one is left to the page."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(thumbnail(image)).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def requests_of(items: Sequence[Item]) -> list[PromptItem]:
    """The items that are attacked requests, in order."""
    return [item for item in items if isinstance(item, PromptItem)]


def by_defense(items: Sequence[Shown]) -> dict[str, dict[str, list[Shown]]]:
    """Items as defense -> attack -> items, in order."""
    tree: dict[str, dict[str, list[Shown]]] = {}
    for item in items:
        tree.setdefault(item.defense, {}).setdefault(item.attack, []).append(item)
    return tree
