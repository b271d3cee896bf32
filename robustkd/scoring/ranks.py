"""How well one order tells another."""

from __future__ import annotations

from itertools import islice, permutations

import numpy as np

_MOST = 20_000
"""Orders that are looked at to tell what chance does; of up to seven things they are all."""


def ranks(values: np.ndarray) -> np.ndarray:
    """(N,) the ranks from 1, of equal values their mean."""
    ordered = np.sort(values)
    below, upto = np.searchsorted(ordered, values, "left"), np.searchsorted(ordered, values, "right")
    found: np.ndarray = (below + upto + 1) / 2
    return found


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rho of two (N,) arrays; 0 where one of them has no order.

    Source: Spearman: The proof and measurement of association between two things (1904).
    """
    x, y = ranks(np.asarray(a, dtype=float)), ranks(np.asarray(b, dtype=float))
    x, y = x - x.mean(), y - y.mean()
    length = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / length if length else 0.0


def chance_of_ranks(count: int) -> float:
    """What the size of the correlation of two random orders of ``count`` things stays within in 95 % of all cases."""
    fixed = np.arange(count)
    if count <= 7:
        orders = np.array(list(islice(permutations(range(count)), _MOST)))
    else:
        orders = np.random.default_rng(0).permuted(np.tile(fixed, (_MOST, 1)), axis=1)
    sizes = np.abs((orders - fixed.mean()) @ (fixed - fixed.mean())) / ((fixed - fixed.mean()) ** 2).sum()
    return float(np.quantile(sizes, 0.95, method="higher"))
