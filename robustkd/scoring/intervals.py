"""Intervals of proportions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Z95 = 1.959963984540054  # the 97.5 % point of the standard normal


def share(held: np.ndarray) -> float | None:
    """The share of (N,) bool that hold, or the mean of (N,) shares, in [0, 1]; None when N is 0: that of nothing is no number."""
    return float(held.mean()) if len(held) else None


def wilson(successes: float, n: int, z: float = Z95) -> tuple[float, float]:
    """The Wilson score interval of a proportion, 95 % by default; (0, 1) when n is 0.

    Source: Wilson: Probable inference, the law of succession, and statistical inference (JASA 1927).
    """
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # Exact at the ends, where rounding would leave 3e-17.
    return (centre - half if successes else 0.0), (centre + half if successes < n else 1.0)


def count_of(share: float, n: int) -> float:
    """How many of n samples a share is, without the noise of floating point: no whole number, where samples hold to a share."""
    return round(share * n, 6)


def share_interval(held: np.ndarray) -> tuple[float, float]:
    """The 95 % Wilson interval of the mean of (N,) bool or, of samples that were judged on several draws, of (N,) shares in [0, 1].

    It covers the choice of the samples and the draws alike: a share of mean p has a variance of at most p (1 - p), that of a coin,
    so the interval is rather too wide than too narrow.
    """
    return wilson(float(held.sum()), len(held))


def ratio_interval(above: np.ndarray, below: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the ratio of the means of (N,) ``above`` and (N,) positive ``below``, of the same samples.

        r = mean(a) / mean(b),   se(r) = sd(a - r b) / (sqrt(N) mean(b))

    (-inf, inf) for a single sample.

    Source: Cochran: Sampling techniques (Wiley 1977), section 6.4, for a sample from a large population.
    """
    n, mean = len(above), float(below.mean())
    if n < 2:
        return -math.inf, math.inf
    ratio = float(above.mean()) / mean
    half = Z95 * float((above - ratio * below).std(ddof=1)) / (math.sqrt(n) * mean)
    return ratio - half, ratio + half


def seeds_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of the mean over trainings of a number that each seed gave, by Student's t; None of fewer than three seeds.

    Two seeds have one too, and it is 13 standard errors wide to each side.
    """
    count = len(values)
    if count < 3 or not np.isfinite(values).all():
        return None
    from scipy.special import stdtrit  # 0.1 s, for several seeds only

    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(count)
    half = float(stdtrit(count - 1, 0.975)) * error
    return mean - half, mean + half
