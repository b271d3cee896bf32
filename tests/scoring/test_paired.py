"""Paired statistics against scipy, brute force and closed forms."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from robustkd.scoring.paired import Comparison, compared, mcnemar, paired_interval, samples_to_tell


@given(st.integers(0, 60), st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_mcnemar_is_the_sign_test(b, c):
    expected = stats.binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert mcnemar(b, c) == pytest.approx(expected, abs=1e-12)
    assert mcnemar(b, c) == mcnemar(c, b)


def test_mcnemar_by_counting_all_coins():
    coins = list(itertools.product([0, 1], repeat=9))
    as_extreme = [sum(throw) for throw in coins if abs(sum(throw) - 4.5) >= abs(2 - 4.5)]
    assert mcnemar(2, 7) == pytest.approx(len(as_extreme) / len(coins))


def score_by_search(b, c, n, d):
    """Tango's statistic with the constrained maximum likelihood found by a search, not by his quadratic."""

    def minus_log_likelihood(q):  # q = probability of "only b", q + d that of "only a"
        rest = 1 - 2 * q - d
        parts = ((b, q + d), (c, q), (n - b - c, rest))
        return -sum(count * math.log(max(p, 1e-300)) for count, p in parts if count)

    low, high = max(0.0, -d), (1 - d) / 2
    q = optimize.minimize_scalar(minus_log_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
    return (b - c - n * d) / math.sqrt(n * (2 * q + d - d * d))


@pytest.mark.parametrize(("b", "c", "n"), [(12, 3, 100), (1, 9, 50), (30, 25, 539), (5, 5, 40)])
def test_the_interval_ends_where_the_score_test_begins_to_reject(b, c, n):
    for end in paired_interval(b, c, n):
        assert abs(score_by_search(b, c, n, end)) == pytest.approx(1.959964, abs=2e-3)


def test_at_zero_the_score_is_mcnemar_s_chi_square():
    # (b - c)^2 / (b + c) = z^2, so an interval of that level just touches 0.
    for b, c, n in ((20, 8, 200), (9, 2, 60)):
        low, _ = paired_interval(b, c, n, z=(b - c) / math.sqrt(b + c))
        assert low == pytest.approx(0, abs=1e-9)


@given(st.integers(1, 80), st.data())
@settings(max_examples=80, deadline=None)
def test_the_interval_holds_the_difference_and_mirrors(n, data):
    b = data.draw(st.integers(0, n))
    c = data.draw(st.integers(0, n - b))
    low, high = paired_interval(b, c, n)
    assert -1 <= low <= (b - c) / n <= high <= 1
    assert high - low > 0
    mirrored = paired_interval(c, b, n)
    assert mirrored == pytest.approx((-high, -low), abs=1e-9)


def test_the_interval_covers():
    """Exact coverage over every table of 30 samples, at a true difference of 0.1 with 0.3 disagreement."""
    n, p_a, p_b = 30, 0.2, 0.1
    covered = 0.0
    for b in range(n + 1):
        for c in range(n + 1 - b):
            low, high = paired_interval(b, c, n)
            if low <= p_a - p_b <= high:
                covered += stats.multinomial.pmf([b, c, n - b - c], n, [p_a, p_b, 1 - p_a - p_b])
    assert covered == pytest.approx(0.95, abs=0.015)


def test_the_number_of_samples_gives_the_power_it_promises():
    needed = samples_to_tell(30, 15, 300)
    rng = np.random.default_rng(0)
    draws = rng.multinomial(needed, [0.1, 0.05, 0.85], size=4000)
    gap, apart = draws[:, 0] - draws[:, 1], draws[:, 0] + draws[:, 1]
    power = float((np.abs(gap) > 1.959964 * np.sqrt(apart)).mean())  # the asymptotic test that the formula is about
    assert power == pytest.approx(0.8, abs=0.03)
    assert samples_to_tell(5, 5, 100) is None
    assert samples_to_tell(10, 0, 100) < samples_to_tell(10, 5, 100)


def test_defenses_are_compared_on_their_shared_samples():
    a, b = np.array([1, 1, 1, 0, 0, 1], bool), np.array([1, 0, 0, 1, 0, 1], bool)
    (only,) = compared([("a", 0, a), ("b", 1, b), ("b", 0, b), ("short", 0, b[:3])])
    assert (only.a, only.b, only.seed, only.only_a, only.only_b, only.n) == ("a", "b", 0, 2, 1, 6)
    assert only.difference == pytest.approx(a.mean() - b.mean())
    assert not only.significant
    assert Comparison.of("x", "y", 0, np.ones(40, bool), np.zeros(40, bool)).significant
