"""LaVAN: a patch at a random place, whose pixels climb towards one other class.

    d_{t+1} = clip( d_t + lr * grad_d ( z_c(x with d) - z_y(x with d) ) / mean |grad_d| ),   c the likeliest wrong class, or the goal

Good as the plain form of a localised attack: the place is not looked for, so what the other patch attacks find beyond it they owe
to the place.

Source: Karmon, Zoran, Goldberg: LaVAN: Localized and visible adversarial noise (ICML 2018), arXiv:1801.02608, algorithm 1. Theirs
is always targeted, and the step is not divided. The class c of an untargeted attack, looked up at each step, the division (so that the
step does not depend on the scale of the logits), the random start and the clipping at each step are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.attacks.image.engine.ascent import AttackState, GradientStep, Search, SearchResult, fixed_budget, maximize
from robustkd.attacks.image.engine.ball import Ball
from robustkd.attacks.image.engine.objective import for_batch
from robustkd.attacks.image.patch.placement import PatchAttack, ball_at, random_places, sides_of
from robustkd.contracts import AttackResult, Batch, Params, Target, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch
from robustkd.scoring.distances import distance, per_sample

if TYPE_CHECKING:
    from torch import Tensor


class LaVANParams(Params):
    """The steps, and how many places are drawn."""

    steps: int = Field(100, ge=1, description="steps at each place")
    lr: float = Field(0.1, gt=0, description="how far a pixel with the mean gradient goes in a step, in pixel units")
    places: int = Field(1, ge=1, description="random places, on the survivors only")


@dataclass(frozen=True)
class MeanEntryStep(GradientStep):
    """x + lr * gradient / (the mean size of its entries in the patch)."""

    lr: float

    def step(self, state: AttackState, t: int) -> Tensor:
        """(A, *shape) the next points, before they are projected."""
        mean = distance(state.gradient, "l1") / state.ball.size
        return state.x + self.lr * state.gradient / per_sample(mean, state.x).clamp_min(torch.finfo(state.x.dtype).tiny)


class LaVAN(PatchAttack):
    """Localised and visible adversarial noise."""

    Params = LaVANParams
    goals = ("untargeted", "targeted")
    loss_family = "margin"
    version = "2"  # in 1 only the largest entries of the gradient moved, towards one class
    source = "Karmon et al. 2018, arXiv:1801.02608"

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """Takes at most ``places * (steps + 1)`` forward and ``places * steps`` backward passes a sample."""
        p, sides, objective = self.params, sides_of(threat, batch.inputs.shape[1:]), for_batch("margin", batch)
        update = MeanEntryStep(p.lr)

        def attempt(search: Search, rows: Tensor, ball: Ball, number: int) -> SearchResult:
            draws = rng.fork(number).select(rows)
            inside = ball_at(ball, random_places(ball, sides, draws), sides)
            start = inside.random_start(draws.fork("start"))
            return maximize(search.oracle, rows, inside, start, objective=objective, update=update, steps=p.steps)

        return fixed_budget(target, batch, threat, attempt, restarts=p.places)
