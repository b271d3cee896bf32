"""Patch PGD: the patch goes where the gradient promises most, and its pixels climb.

    gain(u)  = sum over the patch at u of |g| * (the way that the pixel may go),   g = grad_x loss(f(x), y)
    for the places u of largest gain, half a patch apart:
        x_0   = random point of the patch at u
        x_t+1 = project(x_t + size * steepest(grad_x loss(f(x_t), y)))

For a linear network the first place is the best one. ``choice: random`` draws the places instead: what the choice is worth is the
difference.

Good for a first number under a patch. It follows the gradient of the clean image when it chooses, which says little about a patch
of free pixels on a network that is far from linear: more ``places`` help, and ``patch-rs`` needs no gradient.

Source: the ascent is PGD (Madry et al. 2018); a patch placed by the gradient, and several places tried: Rao, Stutz, Schiele:
Adversarial training against location-optimized adversarial patches (2020), arXiv:2005.02313; Wu, Tong, Vorobeychik: Defending
against physically realizable attacks on image classification (ICLR 2020), arXiv:1909.09552, section 5. The rule for the gain and
the distance between places are ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from robustkd.attacks.image.engine.ascent import Search, SearchResult, SteepestStep, maximize
from robustkd.attacks.image.engine.ball import STEEPEST_REVISIONS, Ball, StepSize
from robustkd.attacks.image.engine.losses import LossParam
from robustkd.attacks.image.engine.objective import ChosenLoss, for_batch
from robustkd.attacks.image.engine.oracle import frozen
from robustkd.attacks.image.patch.placement import PatchAttack, ball_at, promising_places, random_places, sides_of
from robustkd.contracts import AttackResult, Batch, Params, Target, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class PatchPGDParams(Params):
    """The places, and the steps at each of them."""

    places: int = Field(5, ge=1, description="places that are tried, on the survivors only; at a given place, attempts")
    choice: Literal["gradient", "random"] = Field("gradient", description="how places are chosen; random is the control")
    steps: int = Field(50, ge=1, description="steps at each place")
    step_size: float | None = Field(None, gt=0, description="in pixel units; default 2.5 * eps / steps")
    loss: LossParam = "margin"


class PatchPGD(ChosenLoss, PatchAttack):
    """PGD on the pixels of a patch, at the places that the gradient promises most of."""

    Params = PatchPGDParams
    norms = ("linf", "l2", "l1")
    goals = ("untargeted", "targeted")
    source = "Rao et al. 2020, arXiv:2005.02313; Wu et al. 2020, arXiv:1909.09552"
    revisions = STEEPEST_REVISIONS

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """Takes at most ``places * (steps + 1)`` forward and ``places * steps`` backward passes a sample, and one of each to choose."""
        p, objective = self.params, for_batch(self.params.loss, batch)
        sides = sides_of(threat, batch.inputs.shape[1:])
        update = SteepestStep(StepSize(p.step_size, share=2.5 / p.steps))
        with frozen(target.module):
            search = Search.begin(target, batch, threat)
            places = batch.inputs.new_zeros((len(batch), p.places, 2), dtype=torch.int64)
            everybody = search.standing
            if len(everybody) and p.choice == "gradient" and search.ball.movable is None:
                _, _, gradient = search.oracle.value_and_grad(batch.inputs[everybody], everybody, objective)
                places[everybody] = promising_places(search.ball.select(everybody), gradient, sides, p.places)

            def attempt(search: Search, rows: Tensor, ball: Ball, number: int) -> SearchResult:
                draws = rng.fork(number).select(rows)
                chosen = places[rows, number]
                if p.choice == "random" or ball.movable is not None:
                    chosen = random_places(ball, sides, draws.fork("place"))
                inside = ball_at(ball, chosen, sides)
                start = inside.random_start(draws)
                return maximize(search.oracle, rows, inside, start, objective=objective, update=update, steps=p.steps)

            for number in range(p.places):
                search.attempt(attempt, number)
            return search.result()
