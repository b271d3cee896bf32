"""Carlini-Wagner, Linf: keep every pixel under a ceiling, and lower the ceiling as long as examples are found.

    minimise  c * max(kappa - margin(x + d), 0) + sum_i max(|d_i| - tau, 0)   over d with x + d a valid image,

with Adam; tau is 0.9 times the Linf distance of the nearest example so far, and c is doubled until there is one.

Good for Linf distances where a single budget says too little. ``fmn`` and ``fab`` take fewer passes; within one budget
``pgd`` on the margin is cheaper.

Source: Carlini & Wagner: Towards evaluating the robustness of neural networks (S&P 2017), section VI-C. Four things differ,
each because it finds closer examples with fewer passes, and each sample goes its own way:

- Pixels are kept valid by projection, as in ``cw-l2``, and the last step is ``refine``.
- c is given in units of the steepest pixel's: c_t = c / ||g_t||_inf. Below 1 no pixel gains by leaving the ceiling, however
  large the logits are and however flat the network is around the clean image.
- Steps are a share of the distance: of the linearised one, later of the nearest example's.
- A ceiling that stays out of reach for a while is not the end: the next ones are 0.95, 0.975, .. of the nearest example's
  distance, with shorter steps, from that example on. The paper stops there, a tenth above what can be had.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.attacks.image.engine.adam import adam
from robustkd.attacks.image.engine.minimum_norm.nearest import MinNormProblem, MinNormState, Nearest, minimum_norm
from robustkd.attacks.image.engine.minimum_norm.refine import refine
from robustkd.contracts import Attack, AttackResult, Batch, Params, Target, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.contracts.target import Bounds
from robustkd.lazy import torch
from robustkd.scoring.distances import distance, per_sample

if TYPE_CHECKING:
    from torch import Tensor

_STRIDE = 0.1  # of the distance, a step's largest share in each pixel
_LARGEST = 1e10  # c is not doubled beyond it


class CWLinfParams(Params):
    """The settings of Adam, of the constant c and of the ceiling on the perturbation."""

    steps: int = Field(1000, ge=1, description="Adam steps in all")
    patience: int = Field(50, ge=1, description="steps without progress after which the ceiling is raised, or c doubled")
    decrease: float = Field(0.9, gt=0, lt=1, description="the ceiling as a share of the nearest example's distance")
    refinements: int = Field(4, ge=1, description="how many ceilings, each half as far below, are given up before the end")
    initial_const: float = Field(1.0, gt=0, description="the first c; at 1 the steepest pixel begins to leave the ceiling")
    confidence: float = Field(0.0, ge=0, description="kappa: the margin that an adversarial example must have")
    lr: float = Field(0.05, gt=0, description="Adam's largest learning rate, in pixel units; less where the boundary is near")


class CWLinf(Attack):
    """Carlini-Wagner attack, minimising the Linf norm."""

    Params = CWLinfParams
    kind = "minimum-norm"
    norms = ("linf",)
    goals = ("untargeted", "targeted")
    source = "Carlini & Wagner 2017, arXiv:1608.04644"
    loss_family = "margin"

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """Takes at most ``steps + 1`` forward and ``steps`` backward passes a sample, and those of ``refine``."""
        p = self.params

        def search(problem: MinNormProblem, rows: Tensor) -> Nearest:
            return refine(problem, rows, problem.minimize(rows, CeilingStep(p, problem.bounds), p.steps))

        return minimum_norm(target, batch, "linf", search, confidence=p.confidence)


@dataclass(frozen=True)
class CeilingStep:
    """One step of Adam; then the ceiling and c for the next one."""

    params: CWLinfParams
    bounds: Bounds

    def step(self, state: MinNormState, t: int) -> Tensor:
        """(A, *shape) the points after one step of Adam, or the best examples where the next ceiling begins."""
        p, m = self.params, state.memory
        if t == 0:
            self._initialise(state)
        restart = self._next_ceiling(state)
        found = state.best.isfinite()
        ceiling = torch.where(found, state.best * (1 - m["drop"]), torch.inf)
        scale = torch.where(found, state.best * m["drop"] / (1 - p.decrease), m["boundary_distance"].maximum(state.distance))
        delta = state.x - state.clean
        above = delta.abs() > per_sample(ceiling, delta)
        c = m["c"] * (state.value < state.decision_tolerance) / distance(state.gradient, "linf").clamp_min(1e-30)
        # In the memory of the gradient: with Adam's moments, there are many tensors of the images' size.
        gradient = state.gradient.mul_(-per_sample(c, delta)).add_(delta.sign_().mul_(above))
        del delta, above
        rate = (_STRIDE * scale).clamp_max(p.lr)
        step = adam(m, gradient, m["age"]).mul_(per_sample(rate, gradient))
        x = torch.sub(state.x, step, out=step)
        m["age"] = m["age"] + 1
        return torch.where(per_sample(restart, x), state.best_x, x, out=x).clamp_(*self.bounds)

    def _initialise(self, state: MinNormState) -> None:
        boundary_distance = (state.decision_tolerance - state.value) / distance(state.gradient, "l1").clamp_min(1e-30)
        full = torch.full_like
        state.memory.update(
            c=full(boundary_distance, self.params.initial_const), drop=full(boundary_distance, 1 - self.params.decrease)
        )
        state.memory.update(
            boundary_distance=boundary_distance,
            lowest=full(boundary_distance, torch.inf),
            no_progress=torch.zeros_like(state.rows),
        )
        state.memory.update(age=torch.zeros_like(state.rows), first=torch.zeros_like(state.x), second=torch.zeros_like(state.x))

    def _next_ceiling(self, state: MinNormState) -> Tensor:
        """(A,) bool: the ceiling stayed out of reach for ``patience`` steps; the next one is set, and Adam starts anew."""
        p, m = self.params, state.memory
        found = state.best.isfinite()
        nearer = state.best < m["lowest"] * (1 - m["drop"] / 2)  # half of the way down to the ceiling
        m["lowest"] = torch.where(nearer, state.best, m["lowest"])
        m["no_progress"] = torch.where(nearer, 0, m["no_progress"] + 1)
        stuck = m["no_progress"] == p.patience
        m["no_progress"] = torch.where(stuck, 0, m["no_progress"])
        m["c"] = torch.where(stuck & ~found, 2 * m["c"], m["c"]).clamp_max(_LARGEST)
        restart = stuck & found
        m["drop"] = torch.where(restart, m["drop"] / 2, m["drop"])
        state.done = state.done | (m["drop"] < 0.75 * (1 - p.decrease) / 2 ** (p.refinements - 1))
        m["age"] = torch.where(restart, 0, m["age"])
        reset = per_sample(restart, state.x)
        m["first"].masked_fill_(reset, 0)
        m["second"].masked_fill_(reset, 0)
        return restart
