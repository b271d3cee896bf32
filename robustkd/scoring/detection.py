"""How well a detector does: its threshold, its area under the curve, and what it changes about an attack."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from robustkd.contracts import DataError
from robustkd.scoring.intervals import wilson


@dataclass(frozen=True)
class Rate:
    """A share of n samples, with its 95 % Wilson interval; None and (0, 1) of none."""

    share: float | None
    ci_low: float
    ci_high: float
    n: int

    @classmethod
    def of(cls, held: np.ndarray) -> Rate:
        """The share of (N,) bool that hold."""
        n = len(held)
        return cls(float(held.mean()) if n else None, *wilson(float(held.sum()), n), n)


@dataclass(frozen=True)
class Detection:
    """What a detector, or the guards of a language model, make of one attack; every share is of the same test samples unless it says
    otherwise.

    Attributes:
        false_alarms: of all samples, those whose clean input is rejected; of requests, the share of the harmless ones that are.
        fooled: of all samples, those that are answered rightly as they come and that the classifier alone gets wrong under attack; of
            requests, those with which the model alone complies under attack.
        evaded: of all samples, those of them that the detector accepts as well: the attack's success on both.
        detected: of the fooled ones, the share that is rejected.
        auroc: the chance that a fooled sample scores higher than a clean one; 1/2 of a detector that knows nothing, None where no sample
            is fooled.
        fpr95: the share of clean samples that would be rejected by the threshold that rejects 95 % of the fooled ones; None where no
            sample is fooled.
    """

    false_alarms: Rate
    fooled: Rate
    evaded: Rate
    detected: Rate
    auroc: float | None
    fpr95: float | None = None

    @classmethod
    def of(cls, right: np.ndarray, fooled: np.ndarray, alarm: np.ndarray, clean_alarm: np.ndarray) -> Detection:
        """From what happened to each of N samples.

        Args:
            right: (N,) bool, whether the clean input is classified rightly and accepted; of requests, whether one could be broken.
            fooled: (N,) bool, whether the classifier alone gets the attacked input wrong, which lies in the budget.
            alarm: (N,) how far the attacked input is above the threshold; above 0 it is rejected.
            clean_alarm: (M,) likewise of the clean inputs, or of harmless requests.
        """
        broken = right & fooled
        return cls(
            Rate.of(clean_alarm > 0),
            Rate.of(broken),
            Rate.of(broken & ~(alarm > 0)),
            Rate.of(alarm[broken] > 0),
            auroc(alarm[broken], clean_alarm),
            false_alarms_at(0.95, alarm[broken], clean_alarm),
        )


def calibrated_threshold(scores: np.ndarray, false_alarms: float) -> float:
    """The smallest of the scores above which at most the share ``false_alarms`` of them lie.

    Raises:
        DataError: there is no score, or one is not finite.
    """
    if not len(scores) or not bool(np.isfinite(scores).all()):
        bad = int((~np.isfinite(scores)).sum())
        raise DataError(
            f"a detector's threshold is calibrated on {len(scores)} clean samples, {bad} of whose scores are NaN or infinite",
            fix="keep validation data (data: {validation: ..}), and use a detector that can score them",
        )
    ordered = np.sort(scores)
    return float(ordered[len(ordered) - 1 - math.floor(false_alarms * len(ordered))])


def auroc(positive: np.ndarray, negative: np.ndarray) -> float | None:
    """The area under the receiver operating characteristic: P(positive > negative) + P(positive = negative) / 2; None of no sample.

    Source: Hanley & McNeil: The meaning and use of the area under a ROC curve (Radiology 1982).
    """
    if not len(positive) or not len(negative):
        return None
    ordered = np.sort(negative)
    below, upto = np.searchsorted(ordered, positive, "left"), np.searchsorted(ordered, positive, "right")
    return float((below + upto).mean() / (2 * len(ordered)))


def false_alarms_at(detected: float, positive: np.ndarray, negative: np.ndarray) -> float | None:
    """The share of ``negative`` scores that are rejected by the threshold that rejects the share ``detected`` of the positive ones; None
    of no sample.
    """
    if not len(positive) or not len(negative):
        return None
    threshold = np.sort(positive)[len(positive) - math.ceil(detected * len(positive))]
    return float((negative >= threshold).mean())
