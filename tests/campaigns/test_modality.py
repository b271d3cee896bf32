"""Each modality has one object that says how it is evaluated, and one that says how it is shown."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from robustkd.contracts import Modality
from robustkd.evaluation.judging import ImageOutcome, PromptOutcome
from robustkd.evaluation.modality import evaluation_of
from robustkd.reporting.presentation import presentation
from robustkd.reporting.samples import BROKEN, STANDS, UNJUDGED

WHOLE = np.arange(4)
ELIGIBLE, SUCCESS = np.array([True, True, True, False]), np.array([True, False, False, False])


@pytest.mark.parametrize("name", get_args(Modality))
def test_every_modality_has_both(name):
    assert evaluation_of(name).name == name
    assert presentation(name).draws == (name == "text-to-image")


@pytest.mark.parametrize(
    ("name", "given", "told"),
    [
        ("images", {"norm", "eps"}, None),
        ("images", {"norm"}, "missing: eps"),
        ("images", {"eps", "attempts"}, "attempts are for models that are asked"),
        ("text", {"attempts"}, None),
        ("text", {"eps"}, "missing: attempts"),
        ("text-to-image", {"attempts", "curve", "goal"}, "curve, goal: prompts have no such budget"),
    ],
)
def test_a_threat_block_fits_its_modality(name, given, told):
    problem = evaluation_of(name).threat_problem(given)
    assert problem is None if told is None else told in problem[0]


def test_clean_accuracy_is_the_share_of_what_the_modality_says():
    assert evaluation_of("images").clean(ELIGIBLE, None) is ELIGIBLE
    assert evaluation_of("text").clean(ELIGIBLE, [True, False]).tolist() == [True, False]
    assert evaluation_of("text").clean(ELIGIBLE, None).tolist() == []


def test_what_became_of_a_sample_is_told_in_the_terms_of_its_modality():
    zeros, label = np.zeros(4), np.array([0, 1, 2, 0])
    image = ImageOutcome(
        WHOLE, label, ELIGIBLE, SUCCESS, WHOLE, WHOLE, np.array([0, 1, 2, 5]), np.array([7, 1, 2, 5]), zeros, zeros, zeros
    )
    assert presentation("images").taken_for(image).tolist() == [7, STANDS, STANDS, STANDS]
    assert presentation("images").before(image).tolist() == [0, 1, 2, 5]
    asked = PromptOutcome(WHOLE, label, ELIGIBLE, SUCCESS, WHOLE, WHOLE, np.array([False, False, True, False]), WHOLE)
    assert presentation("text").taken_for(asked).tolist() == [BROKEN, STANDS, UNJUDGED, STANDS]
    assert presentation("text").before(asked) is None
    # A request is broken, it stands, or it could not be judged: never two of them, and one of them where it is eligible.
    assert (asked.success.astype(int) + asked.standing + asked.unjudged).tolist() == [1, 1, 1, 0]
    for outcome in (image, asked):
        again = type(outcome).of_columns(outcome.columns())
        assert all((getattr(again, name) == array).all() for name, array in vars(outcome).items() if array is not None)
