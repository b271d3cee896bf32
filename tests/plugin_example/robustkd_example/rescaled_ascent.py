"""RescaledAscent: steps of falling size up a cross entropy that is blind to the logits' scale.

    x_t+1 = project(x_t + eps * (1 + cos(pi t / T)) / 2 * steepest(grad_x CE(z / std(z), y))),   z = f(x_t)

Dividing the logits by their own spread brings back the gradient that a saturated softmax hides.

Source: this package.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pydantic import Field
from torch import Tensor

from robustkd.attacks.image.engine.ascent import AttackState, Search, SearchResult, fixed_budget, maximize
from robustkd.attacks.image.engine.ball import Ball
from robustkd.attacks.image.engine.losses import cross_entropy
from robustkd.contracts import Attack, AttackResult, Batch, Params, Target, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.scoring.distances import per_sample


class RescaledAscentParams(Params):
    steps: int = Field(20, ge=1, description="steps from each start")
    restarts: int = Field(2, ge=1, description="starts: the clean image first, then random points of the ball")


@dataclass(frozen=True)
class Cosine:
    """Steps that begin at eps and fall to nothing."""

    steps: int

    def step(self, state: AttackState, t: int) -> Tensor:
        """The next points, before they are projected."""
        size = state.ball.eps * (1 + math.cos(math.pi * t / self.steps)) / 2
        return state.x + per_sample(size, state.x) * state.ball.steepest(state.gradient, state.x)


class RescaledAscent(Attack):
    """Projected ascent of the cross entropy of rescaled logits."""

    Params = RescaledAscentParams
    norms = ("linf", "l2")
    source = "this package"

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """At most ``restarts * (steps + 1)`` forward and ``restarts * steps`` backward passes a sample."""
        p = self.params

        def loss(logits: Tensor, rows: Tensor) -> Tensor:
            return cross_entropy(logits / logits.detach().std(1, keepdim=True), batch.labels[rows])

        def attempt(search: Search, rows: Tensor, ball: Ball, number: int) -> SearchResult:
            start = ball.random_point(rng.fork(number).select(rows)) if number else ball.centre
            return maximize(search.oracle, rows, ball, start, objective=loss, update=Cosine(p.steps), steps=p.steps)

        return fixed_budget(target, batch, threat, attempt, restarts=p.restarts)
