"""EAD: Carlini-Wagner's search with an elastic net, for sparse perturbations.

    minimise  c * max(kappa - margin(x + d), 0) + ||d||_2^2 + beta' ||d||_1

by projected shrinkage-thresholding with momentum (FISTA):

    z_k+1 = shrink(y_k - a_k grad(c * .. + ||d||_2^2), beta)           a_k = lr * sqrt(1 - k / steps)
    y_k+1 = z_k+1 + k / (k + 3) * (z_k+1 - z_k)

where shrink moves each pixel by beta towards the clean one, at most onto it; and c is searched for by bisection.

Good for L1 distances and sparse perturbations. It takes the passes of ``cw-l2``; ``fmn`` in L1 is quicker.

Source: Chen, Sharma, Zhang, Yi, Hsieh: EAD: elastic-net attacks to deep neural networks via adversarial examples (AAAI 2018),
equations 5 to 8 and algorithm 1. As there the threshold is beta itself, so that the weight of the L1 norm is
beta' = beta / a_k. The points that are judged are the y: the gradient's forward pass serves for both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.attacks.image.engine.minimum_norm.nearest import MinNormProblem, MinNormState, Nearest, minimum_norm
from robustkd.attacks.image.engine.minimum_norm.penalty import ConstantSearch
from robustkd.attacks.image.engine.minimum_norm.refine import refine
from robustkd.contracts import Attack, AttackResult, Batch, Params, Target, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.contracts.target import Bounds
from robustkd.lazy import torch
from robustkd.scoring.distances import distance, per_sample

if TYPE_CHECKING:
    from torch import Tensor

_LOOKS = 4  # of ten. With one, a network trained with PGD on MNIST seemed a third farther away; all steps bring little more.


class EADParams(Params):
    """Parameters of ``ead``; the paper's defaults, with its 1,000 steps cut to 200."""

    steps: int = Field(200, ge=1, description="steps for each c")
    binary_steps: int = Field(9, ge=1, description="values of c that are tried")
    initial_const: float | None = Field(None, gt=0, description="the first c; default: from each sample's linearisation")
    beta: float = Field(0.01, gt=0, description="the threshold of shrinking, in pixel units")
    confidence: float = Field(0.0, ge=0, description="kappa: the margin that an adversarial example must have")
    lr: float = Field(0.01, gt=0, description="the first step size")
    abort_early: bool = Field(True, description="end a sample's search for one c once it stalls, and all once no c helps")


class EAD(Attack):
    """Elastic-net attack, judged by the L1 norm."""

    Params = EADParams
    kind = "minimum-norm"
    norms = ("l1",)
    goals = ("untargeted", "targeted")
    version = "3"
    source = "Chen et al. 2018, arXiv:1709.04114"
    loss_family = "margin"

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """Takes at most ``binary_steps * (steps + 1)`` forward and backward passes a sample, and those of ``refine``."""
        p = self.params
        constants = ConstantSearch(p.steps, p.binary_steps, p.abort_early, _LOOKS)

        def search(problem: MinNormProblem, rows: Tensor) -> Nearest:
            update = EADStep(constants, p.initial_const, p.beta, p.lr, problem.bounds)
            return refine(problem, rows, problem.minimize(rows, update, constants.passes))

        return minimum_norm(target, batch, "l1", search, confidence=p.confidence)


@dataclass(frozen=True)
class EADStep:
    """One step of FISTA, or the start of the search for the next c."""

    constants: ConstantSearch
    initial_const: float | None
    beta: float
    lr: float
    bounds: Bounds

    def step(self, state: MinNormState, t: int) -> Tensor:
        """(A, *shape) the next points of FISTA, or the clean images where the next c begins."""
        weight = self.beta / self.lr
        if t == 0:
            gradient_norm = distance(state.gradient, "linf").clamp_min(1e-12)
            boundary_distance = (state.decision_tolerance - state.value) / gradient_norm
            # Below weight / gradient_norm no pixel moves; the steepest one alone would have to go as far as `boundary_distance`.
            first = (weight + 2 * boundary_distance) / gradient_norm
            self.constants.begin(state, first if self.initial_const is None else torch.full_like(first, self.initial_const))
            state.memory["z"] = state.clean
        m = state.memory
        c, age, z, delta = m["c"], m["age"].to(state.x.dtype), m["z"], state.x - state.clean
        hinge = (state.decision_tolerance - state.value).clamp_min(0)
        ended = self.constants.ended(state, c * hinge + distance(delta, "l2") ** 2 + weight * state.distance)
        gradient = state.gradient.mul_(-per_sample(c * (hinge > 0), delta)).add_(delta.mul_(2))
        del delta
        rate = self.lr * (1 - age / self.constants.steps).clamp_min(0).sqrt()
        step = gradient.mul_(per_sample(rate, gradient))
        m["z"] = shrink(torch.sub(state.x, step, out=step), state.clean, self.beta).clamp_(*self.bounds)
        x = (m["z"] - z).mul_(per_sample(age / (age + 3), z)).add_(m["z"]).clamp_(*self.bounds)
        restart = per_sample(ended, x)
        torch.where(restart, state.clean, m["z"], out=m["z"])
        return torch.where(restart, state.clean, x, out=x)


def shrink(x: Tensor, clean: Tensor, beta: float) -> Tensor:
    """Move each pixel by ``beta`` towards the clean one, at most onto it (equation 7). ``x`` is written over."""
    delta = x.sub_(clean)
    size = delta.abs().sub_(beta).clamp_min_(0)
    return delta.sign_().mul_(size).add_(clean)
