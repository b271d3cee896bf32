"""A classifier of the concepts on the training images, to judge what a model draws.

A classifier that must choose a concept finds one in noise as well. So there is one more class, *none of them*, learnt from what is
no image of the data: noise, flat grey, blends of two concepts, and images with their pixels or blocks shuffled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import Field

from robustkd.contracts import Arrays, Capabilities, DataError, FitContext, Prompts, Target
from robustkd.contracts.capability import ORDINARY
from robustkd.data.arrays import as_arrays
from robustkd.defenses.diffusion.text_to_image_defense import TextToImageDefense
from robustkd.defenses.image.standard import StandardRecipe
from robustkd.defenses.training import NetworkParams, fresh_network, train
from robustkd.defenses.training.seeding import derived_seed

NONE = "none of them"


class ConceptClassifierParams(NetworkParams):
    none_share: float = Field(0.3, gt=0, lt=1, description="images of no concept, as a share of those of the data")


class ConceptClassifier(TextToImageDefense):
    """A network over K concepts and, as class K, none of them. It draws nothing: it is there for a judge to use."""

    Params = ConceptClassifierParams
    source = "no paper: the usual training"

    def target_capabilities(self, others: Mapping[str, Capabilities]) -> Capabilities:
        """Those of a network, which it is."""
        return ORDINARY["images"]

    def fit(self, context: FitContext[Any]) -> Target:
        """Train on the captions' images, each with its concept, and on images of none.

        Raises:
            DataError: the training captions have no images.
        """
        p = self.params
        images = replace(
            context,
            train=with_none(context.train, context.num_classes, p.none_share, derived_seed(context.seed, "none/train")),
            validation=with_none(context.validation, context.num_classes, p.none_share, derived_seed(context.seed, "none")),
            num_classes=context.num_classes + 1,
        )
        network = fresh_network(images, p.model, p.model_params)
        named = dict(zip(context.train.labels.tolist(), context.train["concept"], strict=True))
        # A concept without training images can be no answer, but its place is taken.
        network.classes = (*(named.get(label, f"class {label}") for label in range(context.num_classes)), NONE)
        return train(images, network, StandardRecipe(), p)


def with_none(prompts: Prompts, none: int, share: float, seed: int) -> Arrays:
    """The images with their concepts, then images of no concept, whose label is ``none``.

    Raises:
        DataError: the captions have no images.
    """
    if prompts.images is None:
        raise DataError("the training captions have no images", fix="use a data set of captioned images")
    images = as_arrays(prompts.images, prompts.labels, "captions").unit()
    random = np.random.default_rng(seed)
    wanted = max(5, round(share * len(images)))
    kinds = (_noise, _flat, _blend, _shuffled_pixels, _shuffled_blocks)
    made = [
        kind(images, prompts.labels, len(part), random) for kind, part in zip(kinds, _parts(wanted, len(kinds)), strict=True)
    ]
    nothing = np.concatenate(made).astype(np.float32).clip(0, 1)
    labels = np.concatenate([prompts.labels, np.full(len(nothing), none)])
    return Arrays(np.concatenate([images, nothing]), labels.astype(np.int64))


def _parts(count: int, parts: int) -> list[np.ndarray]:
    return np.array_split(np.arange(count), parts)


def _noise(images: np.ndarray, labels: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Grey noise of any strength around any brightness."""
    shape = (count, 1, 1, 1)
    return random.random(shape) + random.normal(size=(count, *images.shape[1:])) * random.uniform(0.05, 0.7, shape)


def _flat(images: np.ndarray, labels: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Grey images of one brightness that rises or falls evenly across them."""
    height, width = images.shape[2:]
    rows, columns = np.linspace(-0.5, 0.5, height)[:, None], np.linspace(-0.5, 0.5, width)
    level, down, across = random.random((count, 1, 1, 1)), *random.normal(0, 0.3, (2, count, 1, 1, 1))
    return np.broadcast_to(level + down * rows + across * columns, (count, *images.shape[1:]))


def _blend(images: np.ndarray, labels: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """The mean of two images of different concepts; with a single concept, of an image and its negative."""
    first, second = random.integers(0, len(images), (2, count))
    other = np.where((labels[first] == labels[second])[:, None, None, None], 1 - images[first], images[second])
    return (images[first] + other) / 2


def _shuffled_pixels(images: np.ndarray, labels: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    chosen = images[random.integers(0, len(images), count)]
    flat = chosen.reshape(count, -1)
    return random.permuted(flat, axis=1).reshape(chosen.shape)


def _shuffled_blocks(images: np.ndarray, labels: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """The quarters of an image in another order."""
    chosen = images[random.integers(0, len(images), count)]
    top, bottom = np.split(chosen, [chosen.shape[2] // 2], axis=2)
    left, right = np.split(np.concatenate([bottom, top], axis=2), [chosen.shape[3] // 2], axis=3)
    return np.concatenate([right, left], axis=3)
