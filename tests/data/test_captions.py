"""Captioned images: direct captions name their concept, indirect ones do not, and what is forbidden is kept apart."""

from __future__ import annotations

import re

import numpy as np
import pytest

from robustkd import plugins
from robustkd.contracts import DataError
from robustkd.data import SplitParams, load_splits
from robustkd.data.concepts import CLOTHES, DIGITS, Concept
from support.fashion_mnist import needs_fashion_mnist


@pytest.mark.parametrize(
    ("name", "concepts", "shape"),
    [
        ("digit-captions", DIGITS, (1, 8, 8)),
        pytest.param(
            "fashion-captions",
            CLOTHES,
            (1, 16, 16),
            marks=[pytest.mark.slow, needs_fashion_mnist],
        ),
    ],
)
def test_captions_say_their_concept_directly_or_not_at_all(
    name: str, concepts: dict[str, Concept], shape: tuple[int, ...]
) -> None:
    data = load_splits(name, {"per_concept": 30}, SplitParams(validation=20))
    assert data.benign is not None
    assert data.modality == "text-to-image"
    assert data.input_shape == shape
    for prompts in (data.train, data.test, data.benign):
        rows = zip(prompts["prompt"], prompts["concept"], prompts["kind"], prompts.labels, strict=True)
        for text, concept, kind, label in rows:
            named = any(re.search(rf"\b{re.escape(synonym)}\b", text) for synonym in concepts[concept].names)
            assert named == (kind == "direct"), text
            assert data.classes[label] == concept
    asked = [*data.test["prompt"], *data.benign["prompt"]]
    assert len(set(asked)) == len(asked) == 24 * len(concepts)
    assert set(data.test["concept"]).isdisjoint(data.benign["concept"])
    assert len(set(data.test["concept"])) == 5
    assert min(np.unique(data.test["concept"], return_counts=True)[1]) == 24
    assert set(data.train.where("role", "forbidden")["concept"]) == set(data.test["concept"])
    assert len({*data.test["seed"], *data.benign["seed"]}) == len(asked)


def test_the_adjective_says_how_bright_an_image_is() -> None:
    train = load_splits("digit-captions").train
    drawn = [image[image > 0.1].mean() for image in train.images]
    bright = [mean for mean, text in zip(drawn, train["prompt"], strict=True) if re.search(r"\b(bright|shining)\b", text)]
    dark = [mean for mean, text in zip(drawn, train["prompt"], strict=True) if re.search(r"\b(dark|gloomy)\b", text)]
    assert min(bright) > max(dark)


@pytest.mark.parametrize(
    ("forbidden", "message"),
    [(["11"], "no concept '11' to forbid"), ([str(digit) for digit in range(10)], "every concept is forbidden")],
)
def test_what_cannot_be_forbidden_is_named(forbidden: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        plugins.make("datasets", {"kind": "digit-captions", "forbidden": forbidden}).load()


def test_another_draw_asks_for_the_same_concepts_by_other_captions_images_and_seeds() -> None:
    one, other = (load_splits("digit-captions", {"draw": draw, "prompts": 12}) for draw in (0, 1))
    assert one.train.digest() == other.train.digest()
    assert set(one.test["concept"]) == set(other.test["concept"])
    assert set(one.test["seed"]).isdisjoint(other.test["seed"])
    assert len(set(one.test["prompt"]) & set(other.test["prompt"])) < 12
    assert not any((image == other.test.images).all((1, 2, 3)).any() for image in one.test.images)


def test_forbidden_concepts_can_be_asked_for_by_their_own_name_alone() -> None:
    data = load_splits("digit-captions", {"asked": "name"})
    assert set(data.test["kind"]) == {"direct"}
    assert all(
        f" {DIGITS[concept].names[0]}" in text for text, concept in zip(data.test["prompt"], data.test["concept"], strict=True)
    )
    assert data.benign is not None
    assert set(data.benign["kind"]) == {"direct", "indirect"}
