"""One ascent from the inputs themselves: the attacks whose start leaves nothing to chance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustkd.attacks.image.engine.ascent import GradientEstimator, Search, SearchResult, Update, fixed_budget, maximize
from robustkd.attacks.image.engine.ball import Ball
from robustkd.attacks.image.engine.oracle import Objective
from robustkd.contracts import AttackResult, Batch, Target, ThreatModel

if TYPE_CHECKING:
    from torch import Tensor


def maximize_from_inputs(
    target: Target,
    batch: Batch,
    threat: ThreatModel,
    objective: Objective,
    update: Update,
    steps: int,
    estimator: GradientEstimator | None = None,
) -> AttackResult:
    """A fixed-budget attack that is one ``maximize`` from the clean inputs, without a restart."""

    def attempt(search: Search, rows: Tensor, ball: Ball, restart: int) -> SearchResult:
        return maximize(
            search.oracle, rows, ball, ball.centre, objective=objective, update=update, steps=steps, estimator=estimator
        )

    return fixed_budget(target, batch, threat, attempt)
