"""Rank correlations, against SciPy and by counting."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr

from robustkd.scoring.ranks import chance_of_ranks, rank_correlation, ranks

pairs = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=3, max_size=20)


@given(pairs)
def test_ranks_and_their_correlation_are_scipy_s(values):
    a, b = np.array(values, dtype=float).T
    assert np.allclose(ranks(a), rankdata(a))
    if len(set(a)) > 1 and len(set(b)) > 1:
        assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic)
    else:
        assert rank_correlation(a, b) == 0


@pytest.mark.parametrize("count", [3, 5, 6])
def test_chance_is_counted_over_all_orders(count):
    sizes = [abs(spearmanr(range(count), order).statistic) for order in permutations(range(count))]
    limit = chance_of_ranks(count)
    assert np.mean([size <= limit + 1e-9 for size in sizes]) >= 0.95
    assert np.mean([size < limit - 1e-9 for size in sizes]) < 0.95


def test_chance_of_many_is_near_its_limit():
    assert chance_of_ranks(40) == pytest.approx(1.96 / np.sqrt(39), rel=0.05)
