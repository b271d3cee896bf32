"""The worst case per sample."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustkd.scoring.worst_case import worst_case


@st.composite
def standings(draw):
    samples, attacks = draw(st.integers(0, 12)), draw(st.integers(1, 5))
    rows = st.lists(st.booleans(), min_size=samples, max_size=samples)
    return [np.array(draw(rows), dtype=bool) for _ in range(attacks)]


@given(standings())
def test_a_sample_stands_where_it_stands_under_every_attack(attacks):
    naive = []
    for sample in range(len(attacks[0])):
        stands = True
        for attack in attacks:
            if not attack[sample]:
                stands = False
        naive.append(stands)
    found = worst_case(attack for attack in attacks)
    assert found.dtype == bool
    assert found.shape == attacks[0].shape
    assert found.tolist() == naive


def test_it_is_an_array_of_its_own():
    only = np.ones(3, dtype=bool)
    worst_case([only])[0] = False
    assert only.all()


@pytest.mark.parametrize("attacks", [[], [np.ones(2, dtype=bool), np.ones(3, dtype=bool)]], ids=["none", "two lengths"])
def test_what_has_no_worst_case_is_refused(attacks):
    with pytest.raises(ValueError, match=r"no attacks|inhomogeneous"):
        worst_case(attacks)
