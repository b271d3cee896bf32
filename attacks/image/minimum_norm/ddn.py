"""DDN: decouple the direction of the perturbation from its norm, which shrinks inside the boundary and grows outside.

    d'     = d_k + a_k * g_k / ||g_k||_2            g: gradient of the cross entropy
    e_k+1  = (1 - gamma) e_k   if x + d_k is adversarial, else (1 + gamma) e_k
    d_k+1  = clip(e_k+1 * d' / ||d'||_2)

with a_k falling from 1 to 0.01 along a cosine.

Good for L2 distances at few passes. It maximizes the cross entropy: where that saturates it has no direction, and ``fmn`` or
``cw-l2`` are the ones to ask.

Source: Rony, Hafemann, Oliveira, Ben Ayed, Sabourin, Granger: Decoupling direction and norm for efficient gradient-based L2
adversarial attacks and defenses (CVPR 2019), algorithm 1. Its rounding to 256 grey levels is left out: the distances of all
attacks are then of the same kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.attacks.image.engine.losses import LossParam
from robustkd.attacks.image.engine.minimum_norm.nearest import MinNormProblem, MinNormState, Nearest, cosine, minimum_norm
from robustkd.attacks.image.engine.minimum_norm.refine import refine
from robustkd.attacks.image.engine.objective import ChosenLoss, for_batch
from robustkd.contracts import AttackResult, Batch, Params, Target, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.contracts.target import Bounds
from robustkd.lazy import torch
from robustkd.scoring.distances import distance, per_sample

if TYPE_CHECKING:
    from torch import Tensor

_FIRST_RATE, _LAST_RATE = 1.0, 0.01
_TINY = 1e-30


class DDNParams(Params):
    """Parameters of ``ddn``; the paper's defaults."""

    steps: int = Field(100, ge=1, description="steps; the paper uses 100, 300 and 1000")
    gamma: float = Field(0.05, gt=0, lt=1, description="by how much the norm changes in each step")
    init_norm: float = Field(1.0, gt=0, description="the first norm")
    loss: LossParam = "ce"


class DDN(ChosenLoss):
    """Decoupled direction and norm, a minimum-norm attack in L2."""

    Params = DDNParams
    kind = "minimum-norm"
    norms = ("l2",)
    goals = ("untargeted", "targeted")
    version = "3"
    source = "Rony et al. 2019, arXiv:1811.09600"

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """Takes ``steps + 1`` forward and ``steps`` backward passes a sample, and those of ``refine``."""
        p = self.params
        objective = for_batch(p.loss, batch)

        def search(problem: MinNormProblem, rows: Tensor) -> Nearest:
            def query(x: Tensor, active: Tensor) -> tuple[Tensor, Tensor, Tensor]:
                return problem.oracle.value_and_grad(x, active, objective)

            update = DDNStep(p.steps, p.gamma, p.init_norm, problem.bounds)
            return refine(problem, rows, problem.minimize(rows, update, p.steps, query=query))

        return minimum_norm(target, batch, "l2", search)


@dataclass(frozen=True)
class DDNStep:
    """One step of algorithm 1 of the paper."""

    steps: int
    gamma: float
    init_norm: float
    bounds: Bounds

    def step(self, state: MinNormState, t: int) -> Tensor:
        """(A, *shape) the perturbed images x + d_k+1."""
        eps = state.memory.get("eps", torch.full_like(state.best, self.init_norm))
        eps = torch.where(state.adversarial, eps * (1 - self.gamma), eps * (1 + self.gamma))
        state.memory["eps"] = eps
        alpha = cosine(t, self.steps, _FIRST_RATE, _LAST_RATE)
        g = state.gradient.div_(per_sample(distance(state.gradient, "l2").clamp_min(_TINY), state.x))
        delta = (state.x - state.clean).add_(g.mul_(alpha))
        delta.mul_(per_sample(eps / distance(delta, "l2").clamp_min(_TINY), delta))
        return delta.add_(state.clean).clamp_(*self.bounds)
