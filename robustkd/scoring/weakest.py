"""Accuracy of parts of the test samples: where it is lowest, of the worst class or group of classes, and of each group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from robustkd.scoring.intervals import share_interval, wilson
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


@dataclass(frozen=True)
class GroupAccuracy:
    """The test samples of a group of classes that was named before.

    Attributes:
        n: how many.
        clean_accuracy: the share of them that are right before any attack.
        robust_accuracy: the share of them that stand.
        ci_low, ci_high: its 95 % interval, of this group alone.
    """

    n: int
    clean_accuracy: float
    robust_accuracy: float
    ci_low: float
    ci_high: float


def group_accuracies(clean: np.ndarray, held: np.ndarray, parts: Mapping[str, np.ndarray]) -> dict[str, GroupAccuracy]:
    """The accuracies of each part that has a sample.

    Args:
        clean: (N,) bool or shares, what is right before any attack.
        held: (N,) bool or shares, what stands.
        parts: (N,) bool of each part, which samples are in it.
    """
    return {
        name: GroupAccuracy(int(of.sum()), float(clean[of].mean()), float(held[of].mean()), *share_interval(held[of]))
        for name, of in parts.items()
        if of.any()
    }
