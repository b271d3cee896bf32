"""Robust accuracy where it is lowest: of the worst class, or the worst group of classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from robustkd.scoring.intervals import wilson
from robustkd.scoring.multiplicity import simultaneous_z


@dataclass(frozen=True)
class Weakest:
    """The part of the test samples of which the fewest stand.

    Attributes:
        name: of the class or group.
        n: its samples.
        robust_accuracy: the share of them that stand.
        ci_low, ci_high: a 95 % interval of the smallest of the true robust accuracies, whichever part that is of.
        of: how many parts there are.
    """

    name: str
    n: int
    robust_accuracy: float
    ci_low: float
    ci_high: float
    of: int


def weakest(held: np.ndarray, parts: Mapping[str, np.ndarray]) -> Weakest | None:
    """The weakest part; None where no part has a sample.

    Whichever of K parts looks worst was chosen by the same samples, so its own interval says too much: of equal parts the worst one by
    chance lies below their common accuracy. Here K Wilson intervals [l_k, u_k] that hold together with 95 % (Bonferroni) give
    [min l_k, min u_k], which then covers min p_k.

    Args:
        held: (N,) bool, or (N,) shares, what stands.
        parts: (N,) bool of each part, which samples are in it.
    """
    known = {name: held[inside] for name, inside in parts.items() if inside.any()}
    if not known:
        return None
    z = simultaneous_z(len(known))
    intervals = [wilson(float(part.sum()), len(part), z) for part in known.values()]
    name = min(known, key=lambda each: float(known[each].mean()))
    low, high = (min(ends) for ends in zip(*intervals, strict=True))
    return Weakest(name, len(known[name]), float(known[name].mean()), low, high, len(known))
