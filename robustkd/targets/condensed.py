"""A condensed data set as a target: it is stored, loaded and handed to other defenses like any other.

Asked as a classifier, it answers with the label of the nearest of its images: what the set is worth without any training.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from typing_extensions import override

from robustkd import plugins
from robustkd.contracts import Arrays, Card, Condenser, SoftArrays
from robustkd.contracts.json_value import JsonObject
from robustkd.lazy import torch
from robustkd.plugins.nested import PluginSpec
from robustkd.targets.image import ImageTarget

if TYPE_CHECKING:
    from torch import Tensor


class CondenserSpec(PluginSpec):
    """A condenser by its kind, with its parameters."""

    group: ClassVar[plugins.Group] = "condensers"

    @override
    def make(self) -> Condenser:
        condenser: Condenser = super().make()
        return condenser


class CondensedCard(Card):
    """The card of a condensed data set: how many images it has of which type, and whether each has a distribution beside its label."""

    num_classes: int
    input_shape: tuple[int, ...]
    images: int
    stored: Literal["uint8", "float32"]
    soft: bool

    @property
    def bytes(self) -> int:
        """What images, labels and distributions take, uncompressed; a label counts as one byte, as in the files of such data sets."""
        pixels = self.images * math.prod(self.input_shape) * (1 if self.stored == "uint8" else 4)
        return pixels + (4 * self.images * self.num_classes if self.soft else self.images)


class CondensedTarget(ImageTarget):
    """A small training set, and the classifier by the nearest of its images.

    Args:
        arrays: the images in [0, 1] with their labels; ``SoftArrays`` where each has a distribution.
        num_classes: K.
    """

    kind = "condensed-data"

    def __init__(self, arrays: Arrays, *, num_classes: int) -> None:
        from robustkd.targets.nearest import NearestImage  # late: it imports torch

        images = arrays.images if arrays.images.dtype == "uint8" else arrays.unit()
        soft = torch.tensor(arrays.soft, dtype=torch.float32) if isinstance(arrays, SoftArrays) else None
        module = NearestImage(torch.tensor(images), torch.tensor(arrays.labels, dtype=torch.int64), soft, num_classes)
        super().__init__(module, num_classes=num_classes, input_shape=arrays.sample_shape)

    @property
    def device(self) -> torch.device:
        """Where the images are: there are no weights."""
        return self._buffer("images").device

    @property
    def arrays(self) -> Arrays:
        """The set, to train on."""
        images, labels = self._buffer("images").cpu().numpy(), self._buffer("labels").cpu().numpy()
        soft: Tensor | None = self.module._buffers["soft"]
        return Arrays(images, labels) if soft is None else SoftArrays(images, labels, soft.cpu().numpy())

    @property
    def bytes(self) -> int:
        """See ``CondensedCard.bytes``."""
        return CondensedCard.read(self.card()).bytes

    @override
    def card(self) -> JsonObject:
        arrays = self.arrays
        return CondensedCard(
            target=self.kind,
            num_classes=self.num_classes,
            input_shape=self.input_shape,
            images=len(arrays),
            stored="uint8" if arrays.images.dtype == "uint8" else "float32",
            soft=isinstance(arrays, SoftArrays),
        ).to_json()

    @classmethod
    @override
    def from_card(cls, card: JsonObject) -> CondensedTarget:
        own = CondensedCard.read(card)
        images = torch.zeros(own.images, *own.input_shape, dtype=getattr(torch, own.stored)).numpy()
        labels = torch.zeros(own.images, dtype=torch.int64).numpy()
        blank = (
            SoftArrays(images, labels, torch.zeros(own.images, own.num_classes).numpy()) if own.soft else Arrays(images, labels)
        )
        return cls(blank, num_classes=own.num_classes)

    def _buffer(self, name: str) -> Tensor:
        return self.module.get_buffer(name)
