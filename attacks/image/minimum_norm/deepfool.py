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

from robustkd.attacks.image.engine.minimum_norm.finish import finish
from robustkd.attacks.image.engine.minimum_norm.linearise import boundaries, nearest_boundary, nearest_point, onto_hyperplane
from robustkd.attacks.image.engine.minimum_norm.nearest import Nearest, NormOfThreat, Question, Seekers, minimum_norm
from robustkd.contracts import AttackResult, Batch, Params, Target, ThreatModel
from robustkd.contracts.attack import LossFamily
from robustkd.contracts.random import SampleRng
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

    @property
    def loss_family(self) -> LossFamily:
        """It linearises logit margins."""
        return "margin"

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """At most ``steps + 1`` forward passes, and ``steps`` backward passes for each class looked at, and those of
        ``finish``.
        """
        p = self.params
        norm = self.minimises(threat)

        def search(question: Question, rows: Tensor) -> Nearest:
            rule = DeepFoolStep(p.steps, norm, p.overshoot, question.bounds)
            return finish(question, rows, question.seek(rows, rule, p.steps, query=boundaries(question, p.targets)))

        return minimum_norm(target, batch, norm, search)


@dataclass(frozen=True)
class DeepFoolStep:
    """One step of the algorithm; done at the first adversarial point."""

    steps: int
    norm: Norm
    overshoot: float
    bounds: tuple[float, float]

    def step(self, now: Seekers, t: int) -> Tensor:
        """See ``MoveRule``."""
        now.done = now.done | now.adversarial
        value, gradient = nearest_boundary(now.value - now.slack.unsqueeze(1), now.gradient, self.norm)
        if t < self.steps / 2:
            way = nearest_point(value, gradient, self.norm)
        else:
            way = onto_hyperplane(now.x, value, gradient, self.norm, self.bounds) - now.x
        needed = distance(way, self.norm)
        # The overshoot is a share of the whole perturbation, so that no step is too small to cross a curved boundary.
        stretch = 1 + self.overshoot * (now.distance + needed) / needed.clamp_min(1e-30)
        return (now.x + per_sample(stretch, way) * way).clamp(*self.bounds)
