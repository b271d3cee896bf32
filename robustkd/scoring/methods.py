"""Two methods that were trained several times: what is true of their networks need not be true of networks trained anew."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from robustkd.scoring.multiplicity import LEVEL

MOST_SEEDS = 100
"""The largest number of seeds that is asked for."""


@dataclass(frozen=True)
class MethodTest:
    """Whether two methods differ, where both the samples and the trainings are random.

    With d_s the difference on seed s of S, and psi_s the share of samples that withstand on one side alone,

        t = mean(d) / sqrt(var(d) / S + mean(psi - d^2) / n),    S - 1 degrees of freedom.

    The first part of the variance is that of the trainings, the second one bounds that of the samples, which the seeds share and
    whose part the spread between seeds therefore does not show. The fewest degrees of freedom that the sum may have keep the level.

    Attributes:
        seeds: with how many seeds both were trained, at least 2.
        difference, ci_low, ci_high: mean over seeds of the difference, in [-1, 1], with its 95 % interval.
        p: two-sided, of "on average over samples and trainings neither is better".
        p_adjusted: by Holm, for all tests of methods that were made; ``p`` of a lone one.
        seeds_needed: seeds at which a difference and a spread like these are told apart; None where 100 seeds do not suffice.

    Source: the random-reader test of Obuchowski & Rockette: Hypothesis testing of diagnostic accuracy for multiple readers and multiple
    tests (Communications in Statistics 1995), with trainings as readers; the degrees of freedom: Mickey & Brown: Bounds on the
    distribution functions of the Behrens-Fisher statistic (Annals of Mathematical Statistics 1966).
    """

    seeds: int
    difference: float
    ci_low: float
    ci_high: float
    p: float
    p_adjusted: float
    seeds_needed: int | None

    @property
    def significant(self) -> bool:
        """Whether the methods differ, at a level of 5 % for all claims about methods together."""
        return self.p_adjusted < LEVEL


def over_trainings(
    differences: Sequence[float], disagreements: Sequence[float], n: int, *, tests: int = 1
) -> MethodTest | None:
    """The test of the methods; None with less than two seeds or without samples.

    Args:
        differences: of each seed the accuracy of one minus that of the other.
        disagreements: of each seed the share of samples that withstand on one side alone.
        n: samples, the same on every seed.
        tests: among how many such tests a later campaign has to tell the methods apart (for ``seeds_needed``).
    """
    seeds = len(differences)
    if seeds < 2 or n == 0:
        return None
    from scipy.special import stdtr, stdtrit  # 0.1 s, for several seeds only

    d = np.asarray(differences, dtype=np.float64)
    mean, trainings = round(float(d.mean()), 12), float(d.var(ddof=1))
    samples = float((np.asarray(disagreements) - d**2).clip(min=0).mean()) / n

    error = math.sqrt(trainings / seeds + samples)
    half = float(stdtrit(seeds - 1, 1 - LEVEL / 2)) * error
    numbers = np.append(seeds, np.arange(2, MOST_SEEDS + 1))
    errors = np.sqrt(trainings / numbers + samples)
    with np.errstate(divide="ignore"):
        p_values = 2 * stdtr(numbers - 1, -abs(mean) / errors) if mean else np.ones(len(numbers))
    enough = numbers[1:][p_values[1:] < LEVEL / tests]
    p, needed = float(p_values[0]), int(enough[0]) if len(enough) else None
    return MethodTest(seeds, mean, max(-1.0, mean - half), min(1.0, mean + half), p, p, needed)
