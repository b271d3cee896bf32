"""Robust accuracy by the number of queries, of attacks that learn of a target by asking it alone."""

from __future__ import annotations

from bisect import bisect_left

from robustkd.contracts import BaseAttack, target_references
from robustkd.evaluation.judging import ImageOutcome, Outcome
from robustkd.scoring.intervals import share_interval
from robustkd.scoring.results import QueryPoint

_POINTS = (0, *(first * 10**power for power in range(1, 9) for first in (1, 2, 5)))


def by_queries(attack: BaseAttack, outcome: Outcome) -> list[QueryPoint]:
    """What stands after 0, 10, 20, 50, 100, .. queries on each sample, up to all that were made.

    Empty of attacks that take gradients, that learn beforehand or from other models, that take one step, and where it is not known
    when they succeeded or the target draws random numbers.
    """
    traits = attack.traits
    if traits.gradients or traits.learns or not traits.iterative or target_references(attack.params):
        return []
    if not isinstance(outcome, ImageOutcome) or outcome.draws > 1:
        return []
    if traits.kind == "minimum-norm" and outcome.queries_to_success is None:
        return []
    most = int(outcome.forwards.max())
    curve = []
    for queries in _POINTS[: bisect_left(_POINTS, most) + 1]:
        held = outcome.robust_share_after(queries)
        curve.append(QueryPoint(queries, float(held.mean()), *share_interval(held)))
    return curve
