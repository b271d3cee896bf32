"""LPA: the bound on the perceptual distance as a penalty, whose weight grows until it holds.

    lambda <- 0.01,  x' <- x + 0.01 * N(0, I)
    for S rounds:
        for t < T:   g  <- grad [ loss(f(x'), y) - lambda * max(0, d(x', x) - eps) ],  g <- g / ||g||_2
                     m  <- d(x', x' + h g) / h                                the distance that a step along g costs
                     x' <- clip(x' + eps * 0.1^(t / T) / m * g)
        lambda <- 10 * lambda where d(x', x) > eps
    x' <- project(x')

It climbs outside of the bound too, so that it is not stopped by the first wall of it. A sample leaves once it is adversarial within the
bound. Where the gradient is hidden use ``perceptual-search``.

Source: Laidlaw, Singla, Feizi: Perceptual adversarial robustness (ICLR 2021), arXiv:2006.12655, algorithm 2, with S = 5, and T = 20 of the
authors' code. As there, the loss is the margin, up to 1, h is 0.1, and the projection is Newton's. Ours are the restarts, and that where
Newton's steps end outside the last point inside on the line to the clean image is taken.
"""

from __future__ import annotations

from pydantic import Field

from robustkd.attacks.image.engine.ascent import Search, SearchResult, fixed_budget
from robustkd.attacks.image.engine.ball import Ball
from robustkd.attacks.image.engine.fitting import capped
from robustkd.attacks.image.engine.objective import for_batch
from robustkd.attacks.image.engine.perceptual_ball import PerceptualBall, unit
from robustkd.attacks.image.transforms.perceptual.newton import newton_projection
from robustkd.contracts import Attack, AttackResult, Batch, Params, Target, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch
from robustkd.scoring.distances import per_sample

_REACH = 0.1
"""h of the paper: how far along the gradient the distance is measured, in the 2-norm of pixels."""
_FIRST_WEIGHT = 0.01


class LPAParams(Params):
    rounds: int = Field(5, ge=1, description="weights of the penalty that are tried, each ten times the last (S of the paper)")
    steps: int = Field(20, ge=1, description="steps with each weight (T of the paper)")
    restarts: int = Field(1, ge=1, description="attempts from other random starts, on the survivors only")
    noise: float = Field(0.01, ge=0, description="deviation of the normal noise that it starts from, in pixel units")
    ceiling: float | None = Field(
        1.0, gt=0, description="the margin counts up to here, so that the penalty wins beyond; null for no ceiling"
    )


class LPA(Attack):
    """Lagrangian perceptual attack."""

    Params = LPAParams
    space = "perceptual"
    goals = ("untargeted", "targeted")
    source = "Laidlaw et al. 2021, arXiv:2006.12655"
    loss_family = "margin"

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """Takes in each step a forward and a backward pass for the logits, and two forward passes and a backward one for features.

        Passes for features count, whatever network they are made through.
        """
        p, margin = self.params, for_batch("margin", batch)
        objective = capped(margin, p.ceiling)

        def attempt(search: Search, rows: torch.Tensor, ball: Ball, restart: int) -> SearchResult:
            assert isinstance(ball, PerceptualBall)
            oracle, draws = search.oracle, rng.fork(restart).select(rows)
            x = (ball.centre + p.noise * draws.normal(ball.centre.shape[1:], dtype=ball.centre.dtype)).clamp(*ball.bounds)
            weight = torch.full_like(ball.eps, _FIRST_WEIGHT)
            spent, broken = torch.zeros_like(ball.eps), torch.zeros_like(rows, dtype=torch.bool)
            for _ in range(p.rounds):
                for t in range(p.steps):
                    live = (~broken).nonzero().squeeze(1)
                    if not len(live):
                        break
                    here, some = ball.select(live), rows[live]
                    logits, _, up = oracle.value_and_grad(x[live], some, objective)
                    spent[live], down = here.distance_and_gradient(x[live])
                    broken[live] = oracle.is_adversarial(logits, some) & here.holds(spent[live])
                    going = ~broken[live]
                    live, here = live[going], here.select(going)
                    if not len(live):
                        break
                    over = weight[live] * (spent[live] > here.eps)
                    step = unit(up[going] - per_sample(over, x) * down[going])
                    x[live] = (x[live] + per_sample(self._length(here, x[live], step, t), x) * step).clamp(*ball.bounds)
                weight = torch.where(spent > ball.eps, 10 * weight, weight)
            x[~broken] = newton_projection(ball.select(~broken), x[~broken])
            logits = oracle.logits(x, rows)
            return SearchResult(x, margin(logits, rows).to(x.dtype), oracle.is_adversarial(logits, rows))

        return fixed_budget(target, batch, threat, attempt, restarts=p.restarts)

    def _length(self, ball: PerceptualBall, x: torch.Tensor, direction: torch.Tensor, t: int) -> torch.Tensor:
        """(A,) how many pixel units of the 2-norm a step takes whose perceptual length is eps * 0.1 ** (t / T)."""
        moved = torch.linalg.vector_norm(ball.seen(x + _REACH * direction) - ball.seen(x), dim=1).to(x.dtype)
        return ball.eps * 0.1 ** (t / self.params.steps) * _REACH / moved.clamp_min(1e-8)
