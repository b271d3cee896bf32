"""Two towers: an image encoder, and a vector for each class that a text or anything else gave.

    logits_k(x) = scale * cos(image(x), v_k)

So every attack on a classifier works on it, and other class vectors make another classifier of the same encoder.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import BaseModel, ConfigDict
from typing_extensions import override

from robustkd.contracts import AddedLater, Card, TargetError
from robustkd.contracts.json_value import JsonObject
from robustkd.lazy import nn, torch
from robustkd.targets.activations import last_linear
from robustkd.targets.cards import target_from_card
from robustkd.targets.classifier import ClassifierTarget

if TYPE_CHECKING:
    from torch import Tensor

    from robustkd.targets.tower_modules import TextTower, TwoTowers

TEMPERATURE = 0.07
"""Where CLIP's training starts, and what class vectors of anything but texts are given."""


class ImageTower(BaseModel):
    """How an image tower is built again.

    Attributes:
        network: the card of a network whose outputs are the features, or, ``headless``, what its last linear layer is given.
        headless: whether that layer was taken away.
        projection: the widths of a linear layer that is put behind, if there is one.
        vision: instead of these, the configuration of a ``CLIPVisionModelWithProjection`` of transformers.
        processor: what is done with the pixels before it.
    """

    model_config = ConfigDict(frozen=True)

    network: JsonObject | None = None
    headless: bool = False
    projection: tuple[int, int] | None = None
    vision: JsonObject | None = None
    processor: JsonObject = {}

    def build(self) -> nn.Module:
        """The tower in fresh weights.

        Raises:
            TargetError: what is written here makes none.
        """
        if self.vision is not None:
            from robustkd.targets.clip_images import image_tower  # late: it imports torch

            return image_tower(self.vision, self.processor)
        if self.network is None:
            raise TargetError("the card of an image tower names no network")
        module = target_from_card(self.network).module
        module = without_head(module) if self.headless else module
        return module if self.projection is None else nn.Sequential(module, nn.Linear(*self.projection))


class Texts(BaseModel):
    """The sizes of a text tower, and its vocabulary."""

    model_config = ConfigDict(frozen=True)

    words: tuple[str, ...]
    length: int
    width: int
    layers: int

    def build(self, dimensions: int) -> TextTower:
        """The tower in fresh weights (the caller has seeded torch)."""
        from robustkd.targets.tower_modules import TextTower  # late: it imports torch

        return TextTower(self.words, self.length, self.width, self.layers, dimensions)


class TwoTowerCard(Card):
    """The card of two towers."""

    image: ImageTower
    texts: Texts | None
    dimensions: int
    num_classes: int
    input_shape: tuple[int, ...]
    bounds: tuple[float, float]
    classes: Annotated[tuple[str, ...] | None, AddedLater()] = None


class TwoTowerTarget(ClassifierTarget):
    """An image encoder with class vectors, which answers with scaled cosines.

    Args:
        image: (B, C, H, W) in ``bounds`` -> (B, D).
        vectors: (K, D), of any length but 0.
        tower: how to build ``image`` again.
        input_shape: (C, H, W).
        scale: the inverse temperature.
        texts: how to build ``text`` again.
        text: the text tower, where it is kept, so that other texts can be asked about.
        classes: the names of the K classes.
        bounds: the range of valid pixels.
    """

    kind = "two-tower"
    module: TwoTowers

    def __init__(
        self,
        image: nn.Module,
        vectors: Tensor,
        *,
        tower: ImageTower,
        input_shape: Sequence[int],
        scale: float = 1 / TEMPERATURE,
        texts: Texts | None = None,
        text: TextTower | None = None,
        classes: Sequence[str] | None = None,
        bounds: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        from robustkd.targets.tower_modules import TwoTowers  # late: it imports torch

        module = TwoTowers(image, vectors, scale, text)
        super().__init__(module, num_classes=len(vectors), input_shape=input_shape, bounds=bounds)
        self.tower, self.texts, self.dimensions = tower, texts, vectors.shape[1]
        self.classes = tuple(classes) if classes else None

    @classmethod
    def of(cls, target: ClassifierTarget) -> TwoTowerTarget:
        """The target itself where it has two towers. Of any other classifier a copy without its last linear layer: the features that this
        layer was given are the image's, the rows of its weight the classes' vectors, and its bias is gone.

        Raises:
            TargetError: the classifier has no such layer, or its rows are not one for each class.
        """
        if isinstance(target, cls):
            return target
        head = last_linear(target.module)
        if head.out_features != target.num_classes:
            raise TargetError(
                f"the last linear layer has {head.out_features} outputs, the classifier {target.num_classes} classes",
                fix="take an encoder that ends in a linear layer, or a two-tower model",
            )
        low, high = target.bounds
        return cls(
            without_head(copy.deepcopy(target.module)),
            head.weight,
            tower=ImageTower(network=target.card(), headless=True),
            input_shape=target.input_shape,
            classes=target.classes,
            bounds=(float(low), float(high)),
        ).to(target.device)

    @property
    def vectors(self) -> Tensor:
        """(K, D) of length 1."""
        return self.module.vectors

    def of_texts(self, texts: Sequence[str]) -> Tensor:
        """(N, D) the vectors of texts, of length 1, without a graph.

        Raises:
            TargetError: the text tower was not kept.
        """
        text = getattr(self.module, "text", None)
        if text is None:
            raise TargetError(
                "this encoder has no text tower, so there are no vectors of texts", fix="name one of kind clip-pretrain"
            )
        with torch.no_grad():
            found: Tensor = text(text.tokens(texts))
        return found

    def with_vectors(self, vectors: Tensor, classes: Sequence[str] | None = None) -> TwoTowerTarget:
        """The same encoder, whose weights are shared, with other class vectors; their texts' tower is kept."""
        found = TwoTowerTarget(
            self.module.image,
            vectors,
            tower=self.tower,
            input_shape=self.input_shape,
            scale=float(self.module.scale),
            texts=self.texts,
            text=getattr(self.module, "text", None),
            classes=classes,
            bounds=(float(self.bounds[0]), float(self.bounds[1])),
        )
        found.module.train(self.module.training)
        return found.to(self.device)

    @override
    def card(self) -> JsonObject:
        low, high = self.bounds
        return TwoTowerCard(
            target=self.kind,
            image=self.tower,
            texts=self.texts,
            dimensions=self.dimensions,
            num_classes=self.num_classes,
            input_shape=self.input_shape,
            bounds=(float(low), float(high)),
            classes=self.classes,
        ).to_json()

    @classmethod
    @override
    def from_card(cls, card: JsonObject) -> TwoTowerTarget:
        own = TwoTowerCard.read(card)
        return cls(
            own.image.build(),
            torch.ones(own.num_classes, own.dimensions),
            tower=own.image,
            input_shape=own.input_shape,
            texts=own.texts,
            text=None if own.texts is None else own.texts.build(own.dimensions),
            classes=own.classes,
            bounds=own.bounds,
        )

    @override
    def untrained(self) -> Self:
        """The same towers in fresh weights (the caller has seeded torch), with these class vectors."""
        fresh = self.from_card(self.card())
        fresh.module.vectors.copy_(self.module.vectors)
        fresh.module.scale.copy_(self.module.scale)
        return fresh  # type: ignore[return-value]


def without_head(module: nn.Module) -> nn.Module:
    """The network itself, whose last linear layer now gives what it is given.

    Raises:
        TargetError: there is no such layer, or it is the whole network.
    """
    head = last_linear(module)
    path = next(name for name, part in module.named_modules() if part is head)
    parent, _, name = path.rpartition(".")
    if not name:
        raise TargetError("the network is one linear layer, which has no features", fix="take a deeper one")
    setattr(module.get_submodule(parent), name, nn.Identity())
    return module
