"""Intervals of means over clustered samples."""

import numpy as np
import pytest
from scipy import stats

from robustkd.scoring.clustered import clustered_interval


def test_clusters_that_are_each_of_one_mind_are_the_evidence_not_their_samples():
    """Ten clusters of 0s or 1s: the interval is that of ten coins, however many samples stand behind each."""
    of_clusters = np.array([1, 1, 1, 1, 1, 1, 1, 0, 0, 0])
    for each in (1, 50):
        low, high = clustered_interval(np.repeat(of_clusters, each), np.repeat(np.arange(10), each))
        expected = stats.binom(10, 0.7).ppf([0.025, 0.975]) / 10
        assert (low, high) == pytest.approx(expected, abs=0.05)


def test_alike_clusters_leave_the_spread_of_the_samples():
    values = np.tile(np.repeat([0, 1], 50), 8)
    low, high = clustered_interval(values, np.repeat(np.arange(8), 100))
    half = stats.norm.ppf(0.975) * 0.5 / np.sqrt(800)
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.006)


@pytest.mark.slow
def test_of_few_clusters_the_interval_holds_the_mean_as_often_as_it_says():
    random = np.random.default_rng(0)
    clusters, held = np.repeat(np.arange(5), 24), 0
    for _ in range(100):
        shares = np.clip(0.4 + 0.15 * random.standard_normal(5), 0, 1)
        values = (random.random((5, 24)) < shares[:, None]).astype(int) - (random.random((5, 24)) < 0.15)
        low, high = clustered_interval(values.ravel(), clusters)
        held += low <= 0.25 <= high
    assert held >= 89  # the bootstrap of clusters alone: 85 of 100


def test_clusters_of_any_name_and_size_and_the_same_numbers_again():
    values, clusters = np.array([1, 0, 1, 1, 0, 0.5]), np.array(["a", "a", "b", "b", "b", "c"])
    found = clustered_interval(values, clusters, seed=3)
    assert found == clustered_interval(values, clusters, seed=3)
    assert 0 <= found[0] < values.mean() < found[1] <= 1
    assert clustered_interval(values, np.zeros(6)) == (-np.inf, np.inf)
