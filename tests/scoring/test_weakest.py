"""The worst class: which it is, and an interval that covers although the samples chose it."""

import numpy as np
import pytest
from scipy.stats import norm

from robustkd.scoring.intervals import wilson
from robustkd.scoring.weakest import weakest


def parts(labels):
    return {str(number): labels == number for number in np.unique(labels)}


def test_the_worst_part_and_its_interval_by_hand():
    labels = np.repeat([0, 1, 2], [10, 20, 40])
    held = np.concatenate([np.arange(10) < 8, np.arange(20) < 5, np.arange(40) < 14])
    found = weakest(held, parts(labels))
    assert (found.name, found.n, found.robust_accuracy, found.of) == ("1", 20, 0.25, 3)
    ends = [wilson(*pair, norm.ppf(1 - 0.05 / 6)) for pair in ((8, 10), (5, 20), (14, 40))]
    assert (found.ci_low, found.ci_high) == pytest.approx((min(low for low, _ in ends), min(high for _, high in ends)))
    # The upper end is the third part's, which may be the worst one in truth.
    assert found.ci_high == pytest.approx(ends[2][1]) or found.ci_high == pytest.approx(ends[1][1])


def test_one_part_has_the_usual_interval_and_none_has_none():
    held = np.array([True, False, True, True])
    found = weakest(held, {"all": np.ones(4, dtype=bool), "nobody": np.zeros(4, dtype=bool)})
    assert (found.ci_low, found.ci_high) == pytest.approx(wilson(3, 4))
    assert found.of == 1
    assert weakest(held, {"nobody": np.zeros(4, dtype=bool)}) is None


def test_the_interval_covers_the_smallest_of_equal_accuracies():
    """Ten classes of one accuracy: the worst class's own interval misses it far too often, this one does not."""
    rng, truth, own, covered = np.random.default_rng(0), 0.6, 0, 0
    labels = np.repeat(np.arange(10), 50)
    for _ in range(400):
        held = rng.random(500) < truth
        found = weakest(held, parts(labels))
        low, high = wilson(round(found.robust_accuracy * 50), 50)
        own += low <= truth <= high
        covered += found.ci_low <= truth <= found.ci_high
    assert covered / 400 >= 0.95
    assert own / 400 < 0.8


def test_shares_of_draws_count_as_shares():
    held = np.array([0.5, 1.0, 0.0, 0.25])
    found = weakest(held, parts(np.array([0, 0, 1, 1])))
    assert found.robust_accuracy == 0.125
