"""Random patches: random content at random places. The control of the attacks with a patch.

    x with uniform pixels in the patch at a uniform place, ``tries`` times; the try of the largest margin is kept

Good for nothing but a comparison: what a search with as many passes does not break beyond it, it did not find by searching.

Source: this package.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.attacks.image.engine.ascent import AttackState, Search, SearchResult, fixed_budget, maximize, no_gradient
from robustkd.attacks.image.engine.ball import Ball
from robustkd.attacks.image.engine.objective import for_batch
from robustkd.attacks.image.patch.placement import PatchAttack, pasted, random_content, random_places, sides_of
from robustkd.contracts import AttackResult, Batch, Params, Target, ThreatModel
from robustkd.contracts.random import SampleRng

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RandomPatches:
    """Each proposal is a patch of its own, whatever became of the last one."""

    rng: SampleRng
    sides: tuple[int, int]

    def drawn(self, ball: Ball, rows: Tensor, t: int) -> Tensor:
        """(A, *shape) images with a random patch each."""
        draws = self.rng.fork(t).select(rows)
        places = random_places(ball, self.sides, draws)
        return ball.project(pasted(ball.centre, random_content(ball.centre, self.sides, ball.bounds, draws), places))

    def step(self, state: AttackState, t: int) -> Tensor:
        """(A, *shape) the next ones."""
        return self.drawn(state.ball, state.rows, t + 1)


class PatchRandomParams(Params):
    """How many patches are drawn."""

    tries: int = Field(100, ge=1, description="patches for each sample: one forward pass each")


class PatchRandom(PatchAttack):
    """Random content at random places: a control."""

    Params = PatchRandomParams
    goals = ("untargeted", "targeted")
    gradients = False
    iterative = False
    loss_family = "none"
    source = "this package"

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """Takes at most ``tries`` forward passes a sample, and one for the clean image."""
        objective = for_batch("margin", batch)
        patches = RandomPatches(rng, sides_of(threat, batch.inputs.shape[1:]))

        def attempt(search: Search, rows: Tensor, ball: Ball, number: int) -> SearchResult:
            return maximize(
                search.oracle,
                rows,
                ball,
                patches.drawn(ball, rows, 0),
                objective=objective,
                update=patches,
                steps=self.params.tries - 1,
                estimator=no_gradient,
            )

        return fixed_budget(target, batch, threat, attempt)
