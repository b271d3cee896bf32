"""FMN: keep the perturbation on a ball whose radius follows the boundary, in any of four norms.

    e_k+1 = (1 - gamma_k) e_k, at most the best norm     if x + d_k is adversarial
            (1 + gamma_k) e_k                            if it is not, but an earlier one was
            ||d_k||_p + |margin| / ||g_k||_q             if none was: where the linearised boundary lies,
                                                         and at least (1 + gamma_k) e_k
    d_k+1 = clip(project_p(d_k + a_k * g_k / ||g_k||_2, e_k+1))      g: gradient of the margin

with a_k and gamma_k falling along a cosine. In L0 the radius counts pixels, so it changes by one at least.

Good for whole curves of accuracy at few passes, in any norm. It has one start and follows one boundary, so it may end at a
farther one than an attack with restarts.

Source: Pintor, Roli, Brendel, Biggio: Fast minimum-norm adversarial attacks through adaptive norm constraints (NeurIPS 2021),
algorithm 1. Two things are added, both while no example is known: the radius grows by gamma_k at least, and a perturbation
that is shorter than it is stretched. Without them the pixel range, which cuts the perturbation off, holds it short of the
boundary for good (clean MNIST, L2: a quarter of the samples) and networks that are flat around the clean image are left
unbroken (adversarially trained MNIST: half of the samples).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from robustkd.attacks.image.engine.ball import PROJECTION_REVISIONS, Ball
from robustkd.attacks.image.engine.minimum_norm.linearise import DUAL
from robustkd.attacks.image.engine.minimum_norm.nearest import (
    MinNormProblem,
    MinNormState,
    Nearest,
    NormOfThreat,
    cosine,
    in_parts,
    minimum_norm,
)
from robustkd.attacks.image.engine.minimum_norm.refine import refine
from robustkd.contracts import AttackResult, Batch, Params, Target, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.contracts.target import Bounds
from robustkd.contracts.threat import Norm
from robustkd.lazy import torch
from robustkd.scoring.distances import distance, per_sample
from robustkd.scoring.pixels import largest

if TYPE_CHECKING:
    from torch import Tensor

_FALL = 100  # a_k ends at a hundredth of its first value
_LAST_GAMMA = 0.001
_TINY = 1e-30


class FMNParams(Params):
    """Parameters of ``fmn``; the paper's defaults."""

    norm: Literal["linf", "l2", "l1", "l0"] | None = Field(None, description="what is minimised; default: the threat's norm")
    steps: int = Field(100, ge=1, description="steps")
    step_size: float | None = Field(
        None, gt=0, description="length of the first step in L2, it falls to a hundredth; default 1, and 10 to minimise L0"
    )
    gamma: float = Field(0.05, gt=0, lt=1, description="by how much the radius changes at first; it falls to 0.001")


class FMN(NormOfThreat):
    """Fast minimum-norm attack, in Linf, L2, L1 or L0."""

    Params = FMNParams
    norms = ("linf", "l2", "l1", "l0")
    goals = ("untargeted", "targeted")
    version = "2"
    revisions = PROJECTION_REVISIONS
    source = "Pintor et al. 2021, arXiv:2102.12827"
    loss_family = "margin"

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """Takes ``steps + 1`` forward and ``steps`` backward passes a sample, and those of ``refine``."""
        p = self.params
        norm = self.minimises(threat)
        size = p.step_size if p.step_size is not None else (10.0 if norm == "l0" else 1.0)

        def search(problem: MinNormProblem, rows: Tensor) -> Nearest:
            update = FMNStep(p.steps, size, p.gamma, norm, problem.bounds)
            return refine(problem, rows, problem.minimize(rows, update, p.steps))

        return minimum_norm(target, batch, norm, search)


@dataclass(frozen=True)
class FMNStep:
    """One step of algorithm 1, with its two additions."""

    steps: int
    step_size: float
    gamma: float
    norm: Norm
    bounds: Bounds

    def step(self, state: MinNormState, t: int) -> Tensor:
        """(A, *shape) the perturbed images x + d_k+1."""
        eps = self._eps(state, t)
        state.memory["eps"] = eps
        alpha = cosine(t, self.steps, self.step_size, self.step_size / _FALL)
        delta = state.x - state.clean
        g = state.gradient.div_(per_sample(distance(state.gradient, "l2").clamp_min(_TINY), state.x))
        delta += g.mul_(alpha)
        if self.norm == "l0":
            return (state.clean + largest(delta, eps)).clamp(*self.bounds)
        stretch = (eps / distance(delta, self.norm).clamp_min(_TINY)).clamp_min(1)
        delta *= per_sample(torch.where(state.best.isfinite(), 1.0, stretch), delta)
        delta += state.clean
        parts = zip(*in_parts(state.clean, eps, delta), strict=True)
        return torch.cat([Ball(clean, eps, self.norm, self.bounds).project(x) for clean, eps, x in parts])

    def _eps(self, state: MinNormState, t: int) -> Tensor:
        gamma = cosine(t, self.steps, self.gamma, _LAST_GAMMA)
        eps = state.memory.get("eps", torch.zeros_like(state.best))
        smaller, larger = eps * (1 - gamma), eps * (1 + gamma)
        if self.norm == "l0":
            smaller, larger = smaller.floor().minimum(eps - 1).clamp_min(1), larger.floor().maximum(eps + 1)
        else:
            dual_norm = distance(state.gradient, DUAL[self.norm]).clamp_min(_TINY)
            linearised = (state.distance + state.value.abs() / dual_norm).maximum(larger)
            larger = torch.where(state.best.isfinite(), larger, linearised).clamp_max(state.x[0].numel())
        return torch.where(state.adversarial, smaller.minimum(state.best), larger)
