"""PGD0: PGD with the projection onto the images that differ in at most eps pixels.

    x_t+1 = project(x_t + size * g / ||g||_1)      g: gradient of the loss

The projection keeps the pixels that come nearest to the point by it, inside the pixel range.

It shows what PGD's own recipe is worth in l0, at PGD's cost: once a pixel is chosen, its perturbation is long and keeps it chosen,
so the choice hardly changes. ``spgd`` and ``sparse-rs`` break more.

Source: Croce & Hein: Sparse and imperceivable adversarial attacks (ICCV 2019), section 4.1; the step is that of the authors' code, a
mean of 0.15 of the pixel range for each value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.attacks.image.engine.ascent import AttackState, GradientStep, Search, SearchResult, fixed_budget, maximize
from robustkd.attacks.image.engine.ball import Ball
from robustkd.attacks.image.engine.losses import LossParam
from robustkd.attacks.image.engine.objective import ChosenLoss, for_batch
from robustkd.contracts import AttackResult, Batch, Params, Target, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.scoring.distances import distance, per_sample

if TYPE_CHECKING:
    from torch import Tensor


class PGD0Params(Params):
    steps: int = Field(20, ge=1, description="steps in each restart")
    step_size: float = Field(0.15, gt=0, description="mean length of a step for each value, as a share of the pixel range")
    restarts: int = Field(1, ge=1, description="attempts from other random starts, on the survivors only")
    loss: LossParam = "ce"


class PGD0(ChosenLoss):
    """Projected gradient descent in l0."""

    Params = PGD0Params
    norms = ("l0",)
    goals = ("untargeted", "targeted")
    source = "Croce & Hein 2019, arXiv:1909.05040"

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """Takes at most ``restarts * (steps + 1)`` forward and ``restarts * steps`` backward passes a sample."""
        p = self.params
        objective = for_batch(p.loss, batch)

        def attempt(search: Search, rows: Tensor, ball: Ball, restart: int) -> SearchResult:
            start = ball.random_point(rng.fork(restart).select(rows))
            return maximize(search.oracle, rows, ball, start, objective=objective, update=PGD0Step(p.step_size), steps=p.steps)

        return fixed_budget(target, batch, threat, attempt, restarts=p.restarts)


@dataclass(frozen=True)
class PGD0Step(GradientStep):
    """A step along the gradient itself; the loop projects it."""

    size: float

    def step(self, state: AttackState, t: int) -> Tensor:
        """(A, *shape) the next points, before they are projected."""
        low, high = state.ball.bounds
        mean = distance(state.gradient, "l1").clamp_min(1e-30) / state.x[0].numel()
        return state.x + self.size * (high - low) * state.gradient / per_sample(mean, state.x)
