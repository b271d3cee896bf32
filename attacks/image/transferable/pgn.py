"""PGN: gradients that are large where the loss is flat.

    x' uniform in the ball of radius reach * eps around x_t,   x* = x' - size * grad J(x') / (mean |grad J(x')|)
    grad_t = 1/N * sum_i (1 - balance) * grad J(x'_i) + balance * grad J(x*_i)

The difference of the two gradients stands for the slope of the gradient's norm, which is to be small: flat maxima transfer better.

Good for transfer; a step costs 2 N gradients.

Source: Ge et al.: Boosting adversarial transferability by achieving flat local maxima (NeurIPS 2023), algorithm 1. The paper divides by
the 1-norm; the mean, which makes x* a step as large as those of the attack, is that of public code (TransferAttack). There x' and x*
may leave the pixel range; here they are clipped to it. In l2 and l1, where the paper has no rule, x* is a step down the steepest
direction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field
from typing_extensions import override

from robustkd.attacks.image.engine.ascent import AttackState, GradientEstimator
from robustkd.attacks.image.engine.ball import Ball, StepSize
from robustkd.attacks.image.engine.oracle import Objective, Oracle
from robustkd.attacks.image.transferable.momentum import MIFGSM, MomentumParams
from robustkd.contracts import ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch
from robustkd.scoring.distances import distance, per_sample

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class GradientNormPenalty:
    """The mean over ``neighbours`` of the gradients there and a step below them.

    Attributes:
        reach: radius of the neighbourhood, in multiples of eps.
        balance: weight of the gradient below.
        size: of the step down.
    """

    rng: SampleRng
    neighbours: int
    reach: float
    balance: float
    size: StepSize

    def __call__(self, oracle: Oracle, state: AttackState, objective: Objective, t: int) -> Tensor:
        """(A, *shape): two forward and backward passes for each neighbour, or one where the second has no weight."""
        ball = state.ball
        around = Ball(state.x, self.reach * ball.eps, ball.norm, ball.bounds)
        draws = self.rng.fork(t).select(state.rows)
        total = torch.zeros_like(state.x)
        for _ in range(self.neighbours):
            x = around.random_point(draws) if self.reach else state.x
            gradient = oracle.value_and_grad(x, state.rows, objective)[2]
            total += (1 - self.balance) * gradient
            if self.balance:
                below = (x + self.size.within(ball) * self._down(gradient, x, ball)).clamp(*ball.bounds)
                total += self.balance * oracle.value_and_grad(below, state.rows, objective)[2]
        return total / self.neighbours

    def _down(self, gradient: Tensor, x: Tensor, ball: Ball) -> Tensor:
        if ball.norm != "linf":
            return ball.steepest(-gradient, x)
        mean = distance(gradient, "l1") / gradient[0].numel()
        return -gradient / per_sample(mean, gradient).clamp_min(torch.finfo(gradient.dtype).tiny)


class PGNParams(MomentumParams):
    """The neighbourhood, and how much flatness counts."""

    neighbours: int = Field(20, ge=1, description="points around each iterate (N of the paper)")
    reach: float = Field(3.0, ge=0, description="radius of these points, in multiples of eps (zeta of the paper)")
    balance: float = Field(0.5, ge=0, le=1, description="weight of the gradients below (delta of the paper); 0 averages alone")


class PGN(MIFGSM):
    """Penalising gradient norm."""

    Params = PGNParams
    version = "1"
    source = "Ge et al. 2023, arXiv:2306.05225"

    @override
    def estimator(self, threat: ThreatModel, rng: SampleRng) -> GradientEstimator:
        p = self.params
        return GradientNormPenalty(rng, p.neighbours, p.reach, p.balance, self.size)
