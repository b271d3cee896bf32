"""A caption model: it says what is in an image, and classifies by how likely it finds each class's captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from typing_extensions import override

from robustkd.contracts import Card
from robustkd.contracts.json_value import JsonObject
from robustkd.lazy import torch
from robustkd.targets.classifier import ClassifierTarget
from robustkd.targets.two_tower import ImageTower

if TYPE_CHECKING:
    from torch import Tensor, nn

    from robustkd.targets.caption_modules import Captioner


class CaptionerCard(Card):
    """The card of a caption model."""

    image: ImageTower
    words: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...]
    dimensions: int
    width: int
    input_shape: tuple[int, ...]


class CaptionerTarget(ClassifierTarget):
    """An image tower and a recurrent decoder. As a classifier, class k is said by any of ``captions[k]``.

    Args:
        image: (B, C, H, W) in [0, 1] -> (B, D).
        tower: how to build ``image`` again.
        words: the vocabulary.
        captions: of each class, all captions that say it, equally many.
        dimensions: D.
        width: of the decoder.
        input_shape: (C, H, W).
    """

    kind = "captioner"
    module: Captioner

    def __init__(
        self,
        image: nn.Module,
        *,
        tower: ImageTower,
        words: Sequence[str],
        captions: Sequence[Sequence[str]],
        dimensions: int,
        width: int,
        input_shape: Sequence[int],
    ) -> None:
        from robustkd.targets.caption_modules import Captioner  # late: it imports torch

        module = Captioner(image, words, captions, dimensions, width)
        super().__init__(module, num_classes=len(captions), input_shape=input_shape)
        self.tower, self.captions = tower, tuple(tuple(texts) for texts in captions)
        self.dimensions, self.width = dimensions, width

    def describe(self, images: Tensor) -> list[str]:
        """The caption of each of (B, C, H, W) images, the likeliest word at a time."""
        with torch.no_grad():
            return self.module.decode(self.module.greedy(images))

    @override
    def card(self) -> JsonObject:
        return CaptionerCard(
            target=self.kind,
            image=self.tower,
            words=self.module.words,
            captions=self.captions,
            dimensions=self.dimensions,
            width=self.width,
            input_shape=self.input_shape,
        ).to_json()

    @classmethod
    @override
    def from_card(cls, card: JsonObject) -> CaptionerTarget:
        own = CaptionerCard.read(card)
        return cls(
            own.image.build(),
            tower=own.image,
            words=own.words,
            captions=own.captions,
            dimensions=own.dimensions,
            width=own.width,
            input_shape=own.input_shape,
        )

    @override
    def untrained(self) -> Self:
        """The same architecture in fresh weights (the caller has seeded torch)."""
        return self.from_card(self.card())  # type: ignore[return-value]
