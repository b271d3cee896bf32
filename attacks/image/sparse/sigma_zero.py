"""sigma-zero: gradient descent on a smooth count of the changed pixels, with small changes set to 0 after each step.

    loss    = max(-margin(x + d), 0) + mean_i s_i / (s_i + sigma)       s_i = ||d_i||_2^2 of pixel i
    d'      = clip(d - a_t * adam(grad / ||grad||_inf))
    tau     = tau + rate * a_t if x + d is adversarial, else tau - rate * a_t
    d       = d' where max |d'_i| >= tau, else 0

with a_t falling along a cosine to a tenth. The sparser the example may be, the higher tau becomes.

Good for whole curves of accuracy in l0: more than ``fmn``, which projects onto balls, finds at the same passes.

Source: Cina, Villani, Pintor, Schonherr, Biggio, Pelillo: sigma-zero: gradient-based optimization of l0-norm adversarial examples
(ICLR 2025), algorithm 1. The authors count the values that differ, so a pixel of three channels counts up to 3, and treat each channel
on its own. Here, as everywhere in this platform, a pixel counts once: s_i and the threshold are taken over its channels, which change
together. Ours are also the goals and ``refine`` at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.attacks.image.engine.adam import adam
from robustkd.attacks.image.engine.minimum_norm.nearest import (
    MinNormProblem,
    MinNormState,
    Nearest,
    cosine,
    in_parts,
    minimum_norm,
)
from robustkd.attacks.image.engine.minimum_norm.refine import refine
from robustkd.contracts import Attack, AttackResult, Batch, Params, Target, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.contracts.target import Bounds
from robustkd.lazy import torch
from robustkd.scoring.distances import distance, per_sample
from robustkd.scoring.pixels import over_channels

if TYPE_CHECKING:
    from torch import Tensor

_TINY = 1e-12
_FALL = 10  # a_t ends at a tenth of its first value
_BETA2 = 0.999  # Adam's own: here every gradient has the same length


class SigmaZeroParams(Params):
    """Parameters of ``sigma-zero``; the authors' defaults. Lengths are shares of the pixel range."""

    steps: int = Field(1000, ge=1, description="steps; the paper uses 100 and 1000")
    step_size: float = Field(1.0, gt=0, description="the first step of a value (eta_0), it falls to a tenth")
    sigma: float = Field(1e-3, gt=0, description="smoothness of the count: smaller is closer to l0")
    threshold: float = Field(0.3, ge=0, le=1, description="below which a change is set to 0 at first (tau_0)")
    threshold_rate: float = Field(0.01, gt=0, description="change of the threshold in a step, as a share of the step")
    enough: float | None = Field(None, ge=0, description="stop at a sample once so few pixels are found; default: never")


class SigmaZero(Attack):
    """Minimum-norm attack in l0."""

    Params = SigmaZeroParams
    kind = "minimum-norm"
    norms = ("l0",)
    goals = ("untargeted", "targeted")
    source = "Cina et al. 2025, arXiv:2402.01879"
    loss_family = "margin"

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """Takes ``steps + 1`` forward and ``steps`` backward passes a sample, and those of ``refine``."""
        p = self.params

        def search(problem: MinNormProblem, rows: Tensor) -> Nearest:
            update = SigmaZeroStep(p.steps, p.step_size, p.sigma, p.threshold, p.threshold_rate, problem.bounds)
            return refine(problem, rows, problem.minimize(rows, update, p.steps, enough=p.enough))

        return minimum_norm(target, batch, "l0", search)


@dataclass(frozen=True)
class SigmaZeroStep:
    """One step of algorithm 1."""

    steps: int
    step_size: float
    sigma: float
    threshold: float
    threshold_rate: float
    bounds: Bounds

    def step(self, state: MinNormState, t: int) -> Tensor:
        """(A, *shape) the perturbed images."""
        m = state.memory
        low, high = self.bounds
        width = high - low
        if t == 0:
            m["first"], m["second"] = torch.zeros_like(state.x), torch.zeros_like(state.x)
            m["age"], m["tau"] = torch.zeros_like(state.rows), torch.full_like(state.best, self.threshold)
        delta = (state.x - state.clean).div_(width)
        size = torch.cat([over_channels(part**2) for part in in_parts(delta)[0]])
        count = delta.mul_(2 * self.sigma).div_((size + self.sigma) ** 2).div_(size[0].numel())
        missing = per_sample((~state.adversarial).to(count.dtype), count)
        # In the memory of the model's gradient: with Adam's moments, there are many tensors of the images' size.
        gradient = state.gradient.mul_(-(missing * width)).add_(count)
        del delta, count
        gradient.div_(per_sample(distance(gradient, "linf").clamp_min(_TINY), gradient))
        rate = cosine(t, self.steps, self.step_size, self.step_size / _FALL)
        step = adam(m, gradient, m["age"], _BETA2).mul_(width * rate)
        x = torch.sub(state.x, step, out=step).clamp_(*self.bounds)
        m["age"] = m["age"] + 1
        shift = self.threshold_rate * rate
        m["tau"] = (m["tau"] + torch.where(state.adversarial, shift, -shift)).clamp(0, 1)
        change = (x - state.clean).div_(width).abs_()
        change = change.amax(1, keepdim=True) if change.ndim > 3 else change
        return torch.where(change < per_sample(m["tau"], change), state.clean, x, out=x)
