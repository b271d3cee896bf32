"""Several claims at once: how to keep the chance that one of them is false at 5 %, however many are made."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

LEVEL = 0.05
"""The chance of a false claim that a family of claims may have."""


def holm(p: Sequence[float]) -> list[float]:
    """The adjusted p-value of each of ``p``: below ``LEVEL`` with a chance of at most that for any of the true null hypotheses.

    The k-th smallest of m is multiplied by m - k + 1, and is no smaller than those before it. This holds whatever the tests depend on.

    Source: Holm: A simple sequentially rejective multiple test procedure (Scandinavian Journal of Statistics 1979).
    """
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)))
    return [float(value) for value in adjusted]


def simultaneous_z(number: int) -> float:
    """The normal quantile by which ``number`` intervals hold together with 95 % (Bonferroni); that of one interval is 1.96."""
    return NormalDist().inv_cdf(1 - LEVEL / 2 / max(1, number))
