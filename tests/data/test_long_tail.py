"""A long tail: exponential counts of the training images, whatever else is asked for stays as it was."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from robustkd.contracts import DataError
from robustkd.data import SplitParams, load_splits


def test_the_classes_are_thinned_along_an_exponential_and_nothing_else_is():
    plain = load_splits("digits", {}, SplitParams(train=1000, test=50, validation=100))
    tail = load_splits("digits", {}, SplitParams(train=1000, test=50, validation=100, imbalance=20))
    assert plain.train is not None
    assert tail.train is not None
    available = np.bincount(plain.train.labels)
    counts = np.bincount(tail.train.labels)
    assert counts.tolist() == [min(available[k], max(1, round(float(available.max() * 20 ** (-k / 9))))) for k in range(10)]
    assert 15 <= counts[0] / counts[9] <= 25
    assert tail.test.digest() == plain.test.digest()
    assert tail.validation.digest() == plain.validation.digest()
    # What is left of a class is its first images, in their order, and each is one of the full set.
    for k in (0, 5, 9):
        full = plain.train.images[plain.train.labels == k]
        assert np.array_equal(tail.train.images[tail.train.labels == k], full[: counts[k]])
    assert tail.digest != plain.digest
    assert any("long tail" in note for note in tail.notes)


def test_without_imbalance_the_data_and_their_written_form_are_those_of_before():
    one = load_splits("digits", {}, SplitParams(train=300, test=20, imbalance=1))
    other = load_splits("digits", {}, SplitParams(train=300, test=20))
    counts = np.bincount(other.train.labels)
    assert np.bincount(one.train.labels).tolist() == counts.tolist()
    assert "imbalance" not in SplitParams(train=300).model_dump()
    assert SplitParams(imbalance=3).model_dump()["imbalance"] == 3


def test_every_class_keeps_an_image_and_two_seeds_keep_others():
    tails = [load_splits("digits", {}, SplitParams(train=60, imbalance=1e6, seed=seed)).train for seed in (0, 1)]
    for tail in tails:
        assert np.bincount(tail.labels, minlength=10).min() == 1
    assert tails[0].digest() != tails[1].digest()


def test_what_cannot_be_thinned_is_refused_in_one_sentence():
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        SplitParams(imbalance=0.5)
    with pytest.raises(DataError, match="'imbalance' thins the classes of training images, and prompts have no classes"):
        load_splits("vaults", {"vaults": 6, "test_vaults": 2, "validation_vaults": 2}, SplitParams(imbalance=2))
