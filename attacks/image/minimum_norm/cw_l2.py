"""Carlini-Wagner, L2: the smallest perturbation that changes the decision, by penalty and binary search.

    minimise  ||d||_2^2 + c * max(kappa - margin(x + d), 0)   over d with x + d a valid image,

with Adam, for a c that is searched for by bisection, each sample on its own.

Good for distances, and where softmax saturates. It takes hundreds of passes for each c, and in a campaign of another norm it
is a weak attack: it minimises its own.

Source: Carlini & Wagner: Towards evaluating the robustness of neural networks (S&P 2017), sections V and VI-A. Three things
differ, each because it finds closer examples with fewer passes (figures in docs/benchmarks.md):

- The paper names three ways to keep pixels valid; this is its projected gradient descent. Its change of variables (tanh)
  has no gradient at black and white, where most pixels of MNIST are, so these would never move.
- The first c and the learning rate come from the linearisation at the clean image, where the boundary is at distance
  ``d = -margin / ||g||`` and ``c = 2 d / ||g||`` reaches it. A c of 1e-3 spends most values of c on finding the scale, and
  steps of 0.01 in every pixel overshoot where the boundary is near.
- The search for one c starts at the nearest example of the earlier ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.attacks.image.engine.adam import adam
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

_STRIDE = 0.3  # the largest step, as a share of the linearised distance that falls to each pixel


class CWL2Params(Params):
    """Parameters of ``cw-l2``; the defaults of the paper where it gives them, with its 10,000 steps cut to 200."""

    steps: int = Field(200, ge=1, description="Adam steps for each c")
    binary_steps: int = Field(9, ge=1, description="values of c that are tried")
    initial_const: float | None = Field(None, gt=0, description="the first c; default: from each sample's linearisation")
    confidence: float = Field(0.0, ge=0, description="kappa: the margin that an adversarial example must have")
    lr: float = Field(0.01, gt=0, description="Adam's learning rate in pixel units; less where the boundary is near")
    abort_early: bool = Field(True, description="end a sample's search for one c once it stalls, and all once no c helps")


class CWL2(Attack):
    """Carlini-Wagner attack, minimising the L2 norm."""

    Params = CWL2Params
    kind = "minimum-norm"
    norms = ("l2",)
    goals = ("untargeted", "targeted")
    version = "3"
    source = "Carlini & Wagner 2017, arXiv:1608.04644"
    loss_family = "margin"

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """Takes at most ``binary_steps * (steps + 1)`` forward and backward passes a sample, and those of ``refine``."""
        p = self.params
        constants = ConstantSearch(p.steps, p.binary_steps, p.abort_early)

        def search(problem: MinNormProblem, rows: Tensor) -> Nearest:
            update = CWStep(constants, p.initial_const, p.lr, problem.bounds)
            return refine(problem, rows, problem.minimize(rows, update, constants.passes))

        return minimum_norm(target, batch, "l2", search, confidence=p.confidence)


@dataclass(frozen=True)
class CWStep:
    """One step of Adam on the penalised size, or the start of the search for the next c."""

    constants: ConstantSearch
    initial_const: float | None
    lr: float
    bounds: Bounds

    def step(self, state: MinNormState, t: int) -> Tensor:
        """(A, *shape) the points after one step of Adam, or the best examples where the next c begins."""
        if t == 0:
            self._initialise(state)
        m = state.memory
        delta = state.x - state.clean
        hinge = (state.decision_tolerance - state.value).clamp_min(0)
        c, age = m["c"], m["age"]
        ended = self.constants.ended(state, state.distance**2 + c * hinge)
        # 2 delta - c * slope, in the memory of the gradient: with Adam's moments, there are many tensors of the images' size.
        gradient = state.gradient.mul_(-per_sample(c * (hinge > 0), delta)).add_(delta.mul_(2))
        del delta
        step = adam(m, gradient, age).mul_(per_sample(m["lr"], gradient))
        x = torch.sub(state.x, step, out=step).clamp_(*self.bounds)
        if bool(ended.any()):
            found = state.best.isfinite()
            torch.where(per_sample(ended & found, x), state.best_x, x, out=x)
            torch.where(per_sample(ended & ~found, x), state.clean, x, out=x)
            m["first"].masked_fill_(per_sample(ended, x), 0)
            m["second"].masked_fill_(per_sample(ended, x), 0)
        return x

    def _initialise(self, state: MinNormState) -> None:
        gradient_norm = distance(state.gradient, "l2").clamp_min(1e-12)
        boundary_distance = (state.decision_tolerance - state.value) / gradient_norm
        first = (
            2 * boundary_distance / gradient_norm
            if self.initial_const is None
            else torch.full_like(boundary_distance, self.initial_const)
        )
        self.constants.begin(state, first)
        share = boundary_distance / state.x[0].numel() ** 0.5
        state.memory.update(
            lr=(_STRIDE * share).clamp_max(self.lr), first=torch.zeros_like(state.x), second=torch.zeros_like(state.x)
        )
