"""PPGD: steps to the best point of the linearised problem, each followed by a projection onto the perceptual bound.

    v  <- argmax_v  v . grad loss(f(x'), y)   subject to ||J v||_2 <= size,   J the Jacobian of the features at x'
        = size / ||J u||_2 * u,   u the solution of J^T J u = grad loss, by K steps of conjugate gradients
    x' <- project(x' + v)

Where the features are nearly linear within the bound it needs few steps; ``lpa`` is usually stronger.

Source: Laidlaw, Singla, Feizi: Perceptual adversarial robustness (ICLR 2021), arXiv:2006.12655, algorithm 1, with K = 5 and steps of
2 eps / T. As there, the loss is the margin, and J v is a difference of features. Ours are the restarts, the projection, which is along the
line to the clean image, and T = 10.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.attacks.image.engine.ascent import AttackState, Search, SearchResult, fixed_budget, maximize
from robustkd.attacks.image.engine.ball import Ball
from robustkd.attacks.image.engine.objective import for_batch
from robustkd.attacks.image.engine.perceptual_ball import PerceptualBall, unit
from robustkd.contracts import Attack, AttackResult, Batch, Params, Target, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch
from robustkd.scoring.distances import per_sample

if TYPE_CHECKING:
    from torch import Tensor

_APART = 1e-2
"""How far apart, in the 2-norm of pixels, the images are whose features are subtracted."""


@dataclass(frozen=True)
class LinearisedStep:
    """The step that raises the linearised loss most, of a given length in linearised features.

    Attributes:
        share: its length as a share of eps.
        iterations: of conjugate gradients.
    """

    share: float
    iterations: int

    def step(self, state: AttackState, t: int) -> Tensor:
        """(A, *shape): ``iterations`` backward passes, and as many forward ones and two more, for features."""
        ball, x = state.ball, state.x
        assert isinstance(ball, PerceptualBall)
        here, pulled_back = ball.linearised(x)

        def pushed(vectors: Tensor) -> Tensor:
            length = vectors.flatten(1).norm(dim=1, keepdim=True)
            return (ball.seen(x + _APART * unit(vectors)) - here) * length.to(here.dtype) / _APART

        best = conjugate_gradients(lambda vectors: pulled_back(pushed(vectors)), state.gradient, self.iterations)
        length = torch.linalg.vector_norm(pushed(best), dim=1).to(x.dtype)
        return x + per_sample(self.share * ball.eps / length.clamp_min(1e-12), x) * best


def conjugate_gradients(product: Callable[[Tensor], Tensor], right: Tensor, iterations: int) -> Tensor:
    """(A, *shape) approximate solutions of ``product(x) = right``, one system for each sample; ``product`` is linear and positive."""
    found, residual, direction = torch.zeros_like(right), right, right
    for _ in range(iterations):
        image, squared = product(direction), _dot(residual, residual)
        curvature = _dot(direction, image)  # rounding may make it negative where nothing is left to solve
        rate = torch.where(curvature > 1e-12 * squared, squared / curvature.clamp_min(1e-30), 0)
        found, residual = found + rate * direction, residual - rate * image
        direction = residual + _dot(residual, residual) / squared.clamp_min(1e-30) * direction
    return found


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return per_sample((a * b).flatten(1).sum(1), a)


class PPGDParams(Params):
    steps: int = Field(10, ge=1, description="steps in each restart (T of the paper)")
    iterations: int = Field(5, ge=1, description="of conjugate gradients in each step (K of the paper)")
    restarts: int = Field(1, ge=1, description="attempts from other random starts, on the survivors only")
    noise: float = Field(0.01, ge=0, description="deviation of the normal noise that it starts from, in pixel units")


class PPGD(Attack):
    """Perceptual projected gradient descent."""

    Params = PPGDParams
    space = "perceptual"
    goals = ("untargeted", "targeted")
    source = "Laidlaw et al. 2021, arXiv:2006.12655"
    loss_family = "margin"

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """Takes in each step about ``iterations + 2`` forward and ``iterations + 1`` backward passes, and those of the projection.

        Passes for features count, whatever network they are made through.
        """
        p, objective = self.params, for_batch("margin", batch)

        def attempt(search: Search, rows: Tensor, ball: Ball, restart: int) -> SearchResult:
            noise = p.noise * rng.fork(restart).select(rows).normal(ball.centre.shape[1:], dtype=ball.centre.dtype)
            update = LinearisedStep(2 / p.steps, p.iterations)
            start = ball.project(ball.centre + noise)
            return maximize(search.oracle, rows, ball, start, objective=objective, update=update, steps=p.steps)

        return fixed_budget(target, batch, threat, attempt, restarts=p.restarts)
