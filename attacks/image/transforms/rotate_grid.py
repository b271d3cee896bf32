"""Rotations and translations by trying them: every point of a grid, or the worst of k random ones.

    theta* = the first theta of the grid (or of k random draws) with f(T_theta(x)) != y, else that of the largest margin

It needs no gradient. With three parameters a grid comes near to an exhaustive search, which gradients do not (``rotate-pgd``).
``draws: 1`` is the control: one random transform.

Source: Engstrom et al.: Exploring the landscape of spatial robustness (ICML 2019), arXiv:1712.02779, with 31 angles and 5 shifts
along each axis, "grid search" and "worst-of-k". The order is ours: large transforms first.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.attacks.image.engine.ascent import Search, SearchResult, SteepestStep, fixed_budget, maximize, no_gradient
from robustkd.attacks.image.engine.ball import Ball, StepSize
from robustkd.attacks.image.engine.objective import for_batch
from robustkd.contracts import Attack, AttackResult, Batch, Params, SpatialBudget, Target, ThreatModel
from robustkd.contracts.random import SampleRng

if TYPE_CHECKING:
    from torch import Tensor


class RotateGridParams(Params):
    rotations: int = Field(31, ge=1, description="angles of the grid, from one bound to the other; 1 is no rotation")
    translations: int = Field(5, ge=1, description="shifts of the grid along each axis; 1 is none")
    draws: int | None = Field(
        None, ge=1, description="so many random transforms instead of the grid (worst-of-k); 1 is the control"
    )


class RotateGrid(Attack):
    """The worst of a grid of rotations and translations, or of random ones."""

    Params = RotateGridParams
    space = "spatial"
    inputs = "images"
    goals = ("untargeted", "targeted")
    gradients = False
    source = "Engstrom et al. 2019, arXiv:1712.02779"
    loss_family = "none"

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """Takes at most ``rotations * translations ** 2`` forward passes a sample, or ``draws``."""
        draws, objective = self.params.draws, for_batch("margin", batch)
        grid = [] if draws else self._grid(threat)

        def attempt(search: Search, rows: Tensor, ball: Ball, number: int) -> SearchResult:
            if draws:
                point = ball.random_point(rng.fork(number).select(rows))
            else:
                point = ball.eps.unsqueeze(1) * ball.centre.new_tensor(grid[number])
            here = SteepestStep(StepSize(0.0))
            return maximize(search.oracle, rows, ball, point, objective=objective, update=here, steps=0, estimator=no_gradient)

        return fixed_budget(target, batch, threat, attempt, restarts=draws or len(grid))

    def _grid(self, threat: ThreatModel) -> list[tuple[float, float, float]]:
        """(angle, right, down) as shares of eps, the largest first; along an axis that the budget closes there is one point."""
        p, budget = self.params, threat.budget
        assert isinstance(budget, SpatialBudget)
        angles = _points(p.rotations if budget.rotation else 1)
        shifts = _points(p.translations if budget.translation else 1)
        return sorted(itertools.product(angles, shifts, shifts), key=lambda point: -max(map(abs, point)))


def _points(count: int) -> list[float]:
    """``count`` numbers from -1 to 1 at equal distances; one alone is 0."""
    return [2 * number / (count - 1) - 1 for number in range(count)] if count > 1 else [0.0]
