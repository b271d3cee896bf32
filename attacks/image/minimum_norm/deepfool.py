"""DeepFool: step onto the nearest linearised boundary until the decision changes.

    r_k   = proj_p(x_k, pi_k) - x_k            pi_k: the nearest of the hyperplanes that f looks like at x_k
    x_k+1 = clip(x + (1 + overshoot) sum_j r_j)

It takes few steps and gives an upper bound of the distance rather than the least one.

Good for a quick impression of distances; not to judge a defense by.

Source: Moosavi-Dezfooli, Fawzi, Frossard: DeepFool: a simple and accurate method to fool deep neural networks (CVPR 2016),
algorithm 2. Its projection knows no pixel range; clipped afterwards it may fall short of the boundary for good. A sample that
is not across after half of the steps takes the other half onto the nearest point inside the range, as in FAB. (From the
start, that one would lead farther away: median L2 7.8 instead of 4.8 on 40 images of an adversarially trained MNIST network.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from robustkd.attacks.image.engine.minimum_norm.linearise import nearest_boundary, nearest_point, onto_hyperplane
from robustkd.attacks.image.engine.minimum_norm.nearest import MinNormProblem, MinNormState, Nearest, NormOfThreat, minimum_norm
from robustkd.attacks.image.engine.minimum_norm.refine import refine
from robustkd.contracts import AttackResult, Batch, Params, Target, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.contracts.target import Bounds
from robustkd.contracts.threat import Norm
from robustkd.scoring.distances import distance, per_sample

if TYPE_CHECKING:
    from torch import Tensor


class DeepFoolParams(Params):
    """Parameters of ``deepfool``; the defaults of the authors' code."""

    norm: Literal["linf", "l2"] | None = Field(None, description="what is minimised; default: the threat's norm")
    steps: int = Field(50, ge=1, description="at most")
    overshoot: float = Field(0.02, ge=0, description="how much farther than the hyperplanes, as a share")
    targets: int = Field(9, ge=1, description="other classes whose boundaries are looked at, the highest ones")


class DeepFool(NormOfThreat):
    """Steps onto the nearest linearised boundary until the decision changes."""

    Params = DeepFoolParams
    norms = ("linf", "l2")
    goals = ("untargeted", "targeted")
    version = "2"
    source = "Moosavi-Dezfooli et al. 2016, arXiv:1511.04599"
    loss_family = "margin"

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """Takes at most ``steps + 1`` forward passes, and ``steps`` backward passes for each class looked at, and those of
        ``refine``.
        """
        p = self.params
        norm = self.minimises(threat)

        def search(problem: MinNormProblem, rows: Tensor) -> Nearest:
            update = DeepFoolStep(p.steps, norm, p.overshoot, problem.bounds)
            query = nearest_boundary(problem, norm, p.targets, tolerances=1)
            return refine(problem, rows, problem.minimize(rows, update, p.steps, query=query))

        return minimum_norm(target, batch, norm, search)


@dataclass(frozen=True)
class DeepFoolStep:
    """One step onto the nearest boundary; a sample is done at its first adversarial point."""

    steps: int
    norm: Norm
    overshoot: float
    bounds: Bounds

    def step(self, state: MinNormState, t: int) -> Tensor:
        """(A, *shape) the points a little beyond the nearest linearised boundary."""
        state.done = state.done | state.adversarial
        value, gradient = state.value, state.gradient
        if t < self.steps / 2:
            delta = nearest_point(value, gradient, self.norm)
        else:
            delta = onto_hyperplane(state.x, value, gradient, self.norm, self.bounds) - state.x
        needed = distance(delta, self.norm)
        # The overshoot is a share of the whole perturbation, so that no step is too small to cross a curved boundary.
        stretch = 1 + self.overshoot * (state.distance + needed) / needed.clamp_min(1e-30)
        return (state.x + per_sample(stretch, delta) * delta).clamp(*self.bounds)
