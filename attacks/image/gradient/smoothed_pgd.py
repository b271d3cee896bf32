"""PGD on a smoothed loss: the gradient is the mean over points around the iterate.

    g_t     = 1/N * sum_i grad J(x_t + r_i),   r_i uniform in the ball of radius reach * eps
    x_{t+1} = project(x_t + size_t * steepest(g_t)),   size_t as in APGD

Good where the loss changes faster than the budget reaches: a ripple that is added to the input, steps of a quantisation with a
steep surrogate, networks that jump. There the slope at a point says nothing of the next one, and the mean says where the loss goes.
On a smooth network it finds what PGD finds, for N times the passes.

Source: Wu, Zhu & Tai: Understanding and enhancing the transferability of adversarial examples (2018), arXiv:1802.09707, section 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.attacks.image.engine.ascent import AttackState, Search, SearchResult, fixed_budget, maximize
from robustkd.attacks.image.engine.ball import PROJECTION_REVISIONS, Ball
from robustkd.attacks.image.engine.losses import LossParam
from robustkd.attacks.image.engine.objective import ChosenLoss, for_batch
from robustkd.attacks.image.engine.oracle import Objective, Oracle
from robustkd.attacks.image.gradient.apgd import AdaptiveStep, SparseStep
from robustkd.contracts import AttackResult, Batch, Params, Target, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class NeighbourhoodMeanGradient:
    """The mean gradient at ``neighbours`` points that are drawn around each point, ``reach`` of the budget away at most."""

    rng: SampleRng
    neighbours: int
    reach: float

    def __call__(self, oracle: Oracle, state: AttackState, objective: Objective, t: int) -> Tensor:
        """(A, *shape): ``neighbours`` forward and backward passes."""
        around = state.ball.resized(self.reach, state.x)
        draws = self.rng.fork(t).select(state.rows)
        total = torch.zeros_like(state.x)
        for _ in range(self.neighbours):
            total += oracle.value_and_grad(around.random_point(draws), state.rows, objective)[2]
        return total / self.neighbours


class SmoothedPGDParams(Params):
    """The steps and restarts, and the neighbours over which the gradient is averaged."""

    steps: int = Field(20, ge=1, description="steps in each restart")
    restarts: int = Field(1, ge=1, description="attempts from other random starts, on the survivors only")
    neighbours: int = Field(8, ge=1, description="points around each iterate whose gradients are averaged")
    reach: float = Field(0.5, gt=0, description="how far away they are at most, in multiples of eps")
    loss: LossParam = "margin"


class SmoothedPGD(ChosenLoss):
    """PGD with APGD's step sizes, on gradients that are averaged over a neighbourhood."""

    Params = SmoothedPGDParams
    norms = ("linf", "l2", "l1")
    revisions = PROJECTION_REVISIONS
    regions = ("given",)
    goals = ("untargeted", "targeted")
    source = "Wu, Zhu & Tai 2018, arXiv:1802.09707"

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """Takes at most ``restarts * (steps * (neighbours + 1) + 1)`` forward and ``restarts * steps * neighbours`` backward passes."""
        p = self.params
        objective = for_batch(p.loss, batch)
        update = SparseStep(p.steps) if threat.norm == "l1" else AdaptiveStep(p.steps)

        def attempt(search: Search, rows: Tensor, ball: Ball, restart: int) -> SearchResult:
            draws = rng.fork(restart)
            return maximize(
                search.oracle,
                rows,
                ball,
                ball.random_start(draws.select(rows)),
                objective=objective,
                update=update,
                steps=p.steps,
                estimator=NeighbourhoodMeanGradient(draws.fork("neighbours"), p.neighbours, p.reach),
            )

        return fixed_budget(target, batch, threat, attempt, restarts=p.restarts)
