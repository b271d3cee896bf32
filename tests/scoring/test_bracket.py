"""The bracket of a robust accuracy: its ends, what is open, and what contradicts itself."""

import numpy as np
import pytest

from robustkd.contracts import Certificate
from robustkd.scoring.bracket import bracket
from robustkd.scoring.intervals import wilson

HELD = np.array([True, True, True, False, False])
PASSES = np.array([10, 20, 30, 4, 5])


def test_its_ends_are_what_is_proved_and_what_is_not_known_to_break():
    found = bracket(
        {"proof": Certificate([True, False, False, False, False], [False, False, True, True, False])}, HELD, [PASSES]
    )
    assert (found.certified, found.attacked) == (0.2, 0.4)  # the third sample falls to the analysis
    assert (found.ci_low, found.ci_high) == wilson(1, 5)
    assert (found.open, found.contradicted, found.exact) == (1, 0, False)
    assert found.passes_on_certified == 10


def test_passes_are_saved_on_certified_samples_that_an_attack_leaves_alone():
    proof = {"proof": Certificate([True, True, True, False, False], [False] * 5)}
    found = bracket(proof, HELD, [np.array([10, 20, 0, 4, 5]), np.array([3, 0, 0, 1, 1]), PASSES])
    assert found.passes_on_certified == 10 + 20 + 3 + 10 + 20 + 30
    assert found.passes_saved == 15 + 2 * 3
    assert bracket(proof, HELD, [np.zeros(5, dtype=int)]).passes_saved == 0  # nobody knows what it would have spent


def test_it_is_exact_where_every_sample_is_decided():
    robust, broken = [True, True, False, False, False], [False, False, True, False, False]
    found = bracket({"proof": Certificate(robust, broken)}, HELD, [PASSES])
    assert found.exact
    assert found.certified == found.attacked == 0.4
    on_draws = bracket({"smoothing": Certificate(robust, broken, error=0.001)}, HELD, [PASSES])
    assert not on_draws.exact
    assert on_draws.error == 0.001


def test_several_certificates_are_put_together_and_each_may_be_of_the_first_samples_alone():
    two = {"one": Certificate([True], [False]), "other": Certificate([False, True], [False, False])}
    found = bracket(two, HELD, [PASSES])
    assert found.certified == 0.4
    assert found.open == 1
    assert found.analyses == ["one", "other"]
    assert bracket({}, HELD, [PASSES]) is None


@pytest.mark.parametrize(
    ("robust", "broken", "contradicted"),
    [
        ([True] * 5, [False] * 5, 2),  # two fall to the attacks
        ([True, True, False, False, False], [True, False, False, False, False], 1),  # one to another certificate
    ],
)
def test_a_certified_sample_that_falls_is_counted(robust, broken, contradicted):
    found = bracket({"proof": Certificate(robust, broken)}, HELD, [PASSES])
    assert found.contradicted == contradicted
    assert not found.exact


def test_a_share_of_draws_below_one_contradicts_a_proof():
    found = bracket({"proof": Certificate([True, False], [False, False])}, np.array([0.9, 0.5]), [np.zeros(2)])
    assert found.contradicted == 1
    assert found.attacked == pytest.approx(0.7)


def test_a_vote_that_is_lost_on_some_draws_contradicts_no_certificate_of_the_vote_of_infinitely_many() -> None:
    """Of a defense by smoothing seven of 71 certified samples were told as contradicted: each had lost one draw of ten."""
    robust, broken = [True, True, False], [False, False, False]
    held = np.array([0.9, 0.0, 0.5])
    assert bracket({"smoothing": Certificate(robust, broken, error=0.001)}, held, [np.zeros(3)]).contradicted == 1
    assert bracket({"proof": Certificate(robust, broken)}, held, [np.zeros(3)]).contradicted == 2
