"""Feature PGD: as far away in an encoder's features as the budget allows, without labels or head.

    maximize  D( f(x'), f(x) )  over the ball,      D = 1 - cos, or ||.||^2;  f the encoder, or what the last linear layer is given
    x_0   = a random point of the ball (at x itself the gradient is 0)
    x_t+1 = project(x_t + size * steepest(grad_x D))

The point that ends up furthest is shown to the target once. It was made for no task, so one search serves all heads that stand on the
encoder, and by ``transfer`` all students of it.

Good to see what an attacker can do to an encoder before anybody has decided what it is used for. An attack that knows the head is
stronger. ``steps: 0`` is the control: a random corner of the ball, the full budget in a direction that nobody chose.

From the authors of the losses that it is used with (FARE's inner maximisation is the l2 form): the distance and the start. From us: the
step size of ``pgd`` and the choice of the best point.

Source: Schlarmann et al.: Robust CLIP (ICML 2024), arXiv:2402.12336, equation 3; the cosine as in Naseer et al.: A self-supervised
approach for adversarial robustness (CVPR 2020), equation 1, from memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.attacks.image.engine.ascent import Search, SearchResult, SteepestStep, maximize
from robustkd.attacks.image.engine.ball import STEEPEST_REVISIONS, Ball, StepSize
from robustkd.attacks.image.engine.feature_losses import FeatureDistance, distance
from robustkd.attacks.image.engine.objective import for_batch
from robustkd.attacks.image.engine.oracle import Objective, Oracle, frozen
from robustkd.contracts import Attack, AttackResult, Batch, Params, Target, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.scoring.distances import per_sample
from robustkd.targets.encoder import EncoderTarget

if TYPE_CHECKING:
    from torch import Tensor


class FeaturePGDParams(Params):
    """The steps, and the distance that is made large."""

    steps: int = Field(20, ge=0, description="steps; 0 is the control, a random corner of the ball")
    step_size: float | None = Field(None, gt=0, description="in pixel units; default 2.5 * eps / steps")
    distance: FeatureDistance = Field(
        "cos", description="of the features: 1 - cos, or l2, the squared distance of the features as they are"
    )


class FeaturePGD(Attack):
    """PGD on the distance of the features."""

    Params = FeaturePGDParams
    norms = ("linf", "l2")
    regions = ("given",)
    revisions = STEEPEST_REVISIONS
    loss_family = "none"
    source = "Schlarmann et al. 2024, arXiv:2402.12336"

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """Takes at most ``steps + 3`` forward and ``steps`` backward passes a sample."""
        p = self.params
        margin = for_batch("margin", batch)

        def attempt(search: Search, rows: Tensor, ball: Ball, number: int) -> SearchResult:
            draws = rng.fork(number).select(rows)
            if not p.steps:
                x = random_corner(ball, draws)
            else:
                oracle = Oracle(EncoderTarget(target, unit=p.distance == "cos"), batch)
                oracle.passes = search.oracle.passes
                clean = oracle.logits(ball.centre, rows)
                found = maximize(
                    oracle,
                    rows,
                    ball,
                    ball.random_start(draws),
                    objective=_far_from(clean, rows, len(batch), p.distance),
                    update=SteepestStep(StepSize(p.step_size, share=2.5 / p.steps)),
                    steps=p.steps,
                )
                x = found.x
            logits = search.oracle.logits(x, rows)
            return SearchResult(x, margin(logits, rows).to(x.dtype), search.oracle.is_adversarial(logits, rows))

        with frozen(target.module):
            search = Search.begin(target, batch, threat)
            search.attempt(attempt)
            return search.result()


def random_corner(ball: Ball, rng: SampleRng) -> Tensor:
    """(B, *shape) the full budget in a random direction: a corner of the linf ball, a point of the l2 sphere."""
    noise = rng.normal(ball.centre.shape[1:], ball.centre.dtype)
    return ball.project(ball.centre + per_sample(ball.eps, noise) * ball.steepest(noise, ball.centre))


def _far_from(clean: Tensor, rows: Tensor, count: int, kind: FeatureDistance) -> Objective:
    """The distance from the (A, D) features ``clean`` of these rows of ``count``."""
    wanted = clean.new_zeros(count, clean.shape[1])
    wanted[rows] = clean
    return lambda features, asked: distance(features, wanted[asked], kind)
