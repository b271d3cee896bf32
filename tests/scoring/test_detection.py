"""Thresholds and areas under the curve, against other implementations and by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from robustkd.contracts import DataError
from robustkd.scoring.detection import Detection, auroc, calibrated_threshold, false_alarms_at

scores = st.lists(st.integers(0, 20), min_size=1, max_size=60).map(lambda values: np.array(values, dtype=float))


@given(scores, st.floats(0, 0.99))
def test_the_threshold_is_the_smallest_score_with_so_few_above_it(found, rate):
    threshold = calibrated_threshold(found, rate)
    assert (found > threshold).mean() <= rate + 1e-12
    lower = found[found < threshold]
    assert not len(lower) or (found > lower.max()).mean() > rate - 1e-12


def test_without_scores_or_with_one_that_is_none_there_is_no_threshold():
    with pytest.raises(DataError, match="0 clean samples"):
        calibrated_threshold(np.zeros(0), 0.05)
    with pytest.raises(DataError, match="1 of whose scores"):
        calibrated_threshold(np.array([0.0, np.nan]), 0.05)


@given(scores, scores)
def test_the_area_is_scikit_learn_s(positive, negative):
    labels = np.r_[np.ones(len(positive)), np.zeros(len(negative))]
    assert auroc(positive, negative) == pytest.approx(roc_auc_score(labels, np.r_[positive, negative]))


@given(scores, scores, st.sampled_from([0.5, 0.95, 1]))
def test_false_alarms_at_a_share_of_detections_are_the_lowest_of_scikit_learn_s_curve_there(positive, negative, detected):
    labels = np.r_[np.ones(len(positive)), np.zeros(len(negative))]
    fpr, tpr, _ = roc_curve(labels, np.r_[positive, negative], drop_intermediate=False)
    assert false_alarms_at(detected, positive, negative) == pytest.approx(fpr[tpr >= detected - 1e-12].min())


def test_of_no_sample_there_is_neither():
    assert auroc(np.zeros(0), np.ones(3)) is None
    assert false_alarms_at(0.95, np.zeros(0), np.ones(3)) is None


def test_shares_by_hand():
    """Ten samples: two were not right, of the eight others five are fooled, of which two are accepted."""
    right = np.array([0, 0, 1, 1, 1, 1, 1, 1, 1, 1], dtype=bool)
    fooled = np.array([1, 0, 1, 1, 1, 1, 1, 0, 0, 0], dtype=bool)
    alarm = np.array([0, 9, 9, 9, 9, 0, -1, 9, -1, -1], dtype=float)
    clean = np.array([-1, 1, -1, -1, -1, -1, -1, -1, -1, -1], dtype=float)
    told = Detection.of(right, fooled, alarm, clean)
    assert (told.false_alarms.share, told.fooled.share, told.evaded.share, told.detected.share) == (0.1, 0.5, 0.2, 0.6)
    assert (told.detected.n, told.fooled.n) == (5, 10)
    assert told.fpr95 == 1
    assert told.evaded.ci_low < 0.2 < told.evaded.ci_high
