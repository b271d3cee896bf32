"""Robust accuracy over several attacks: the worst case at the headline eps and at others, and what could not be judged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from robustkd.campaigns.store.samples import AttackRecord
from robustkd.contracts import BaseAttack
from robustkd.scoring.intervals import share, share_interval
from robustkd.scoring.results import CURVE_STEPS, CurvePoint
from robustkd.scoring.worst_case import worst_case


def worst_case_of(records: Sequence[AttackRecord]) -> np.ndarray:
    """(N,) what the attacks leave of each sample at the headline eps."""
    return worst_case(record.outcome.robust_share for record in records)


def _undecided(records: Sequence[AttackRecord]) -> np.ndarray:
    """(N,) bool: no attack is known to have broken it, and of one at least it is not known."""
    outcomes = [record.outcome for record in records]
    open_ = np.logical_or.reduce([outcome.eligible & ~outcome.decided for outcome in outcomes])
    undecided: np.ndarray = open_ & ~np.logical_or.reduce([outcome.success for outcome in outcomes])
    return undecided


def unjudged_share(records: Sequence[AttackRecord]) -> float | None:
    """The share of requests that could not be judged; None of images, which need no judge."""
    return share(_undecided(records)) if all(record.outcome.needs_judge for record in records) else None


def measures_every_eps(attack: BaseAttack) -> bool:
    """Whether it finds each sample's smallest eps, and not only whether one that was asked for is enough."""
    return attack.traits.kind == "minimum-norm"


def accuracy_curve(records: Sequence[AttackRecord], points: set[float], *, everywhere: bool) -> list[CurvePoint]:
    """The worst case over the attacks at each of ``points``, which were attacked; where known ``everywhere``, between 0 and them too."""
    between = np.linspace(0, max(points), CURVE_STEPS + 1)[1:-1].tolist() if everywhere else []
    curve, decided = [], ~_undecided(records)
    for eps in sorted({*points, *between}):
        held = decided * worst_case(record.robust_share(eps) for record in records)
        curve.append(CurvePoint(float(eps), float(held.mean()), *share_interval(held)))
    return curve
