"""SPSA: Adam on a gradient estimated with directions of random signs.

    g_t     = 1/n * sum_i (J(x_t + delta u_i) - J(x_t - delta u_i)) / (2 delta) u_i,   u_i in {-1, 1}^d
    x_{t+1} = project(x_t + Adam(g_t))

Good to cross-check gradients that may be masked. It costs 2 n queries a step, and like ``nes`` it is blind where scores do
not change.

Source: Uesato et al.: Adversarial risk and the dangers of evaluating against weak attacks (ICML 2018), section 4 and
appendix; the estimate is Spall's (1992).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.attacks.image.engine.adam import adam
from robustkd.attacks.image.engine.ascent import AttackState
from robustkd.attacks.image.engine.ball import PROJECTION_REVISIONS
from robustkd.attacks.image.engine.estimates import FiniteDifferences, rademacher
from robustkd.attacks.image.engine.from_inputs import maximize_from_inputs
from robustkd.attacks.image.engine.losses import LossParam
from robustkd.attacks.image.engine.objective import ChosenLoss, for_batch
from robustkd.contracts import AttackResult, Batch, Params, Target, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class AdamStep:
    """A step of Adam that raises the objective."""

    lr: float

    def step(self, state: AttackState, t: int) -> Tensor:
        """(A, *shape) the points x_{t+1}, before they are projected."""
        if t == 0:
            state.memory.update(first=torch.zeros_like(state.x), second=torch.zeros_like(state.x))
        age = torch.full_like(state.rows, t)
        return state.x + self.lr * adam(state.memory, state.gradient, age)


class SPSAParams(Params):
    """Parameters of ``spsa``; it makes ``steps * (2 * pairs + 1)`` queries at most."""

    steps: int = Field(100, ge=1, description="steps")
    pairs: int = Field(64, ge=1, description="directions for each estimate, each looked at both ways")
    delta: float = Field(0.01, gt=0, description="how far to look, in pixel units")
    lr: float = Field(0.01, gt=0, description="Adam's learning rate, in pixel units")
    loss: LossParam = "margin"


class SPSA(ChosenLoss):
    """Simultaneous perturbation stochastic approximation: needs no gradient."""

    Params = SPSAParams
    norms = ("linf", "l2", "l1")
    regions = ("given",)
    goals = ("untargeted", "targeted")
    gradients = False
    version = "3"  # 2 cut queries back into the pixel range: pixels at their bounds were seen half
    revisions = PROJECTION_REVISIONS
    source = "Uesato et al. 2018, arXiv:1802.05666"

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """Takes at most ``steps * (2 * pairs + 1) + 1`` forward passes a sample."""
        p, objective = self.params, for_batch(self.params.loss, batch)
        update, estimator = AdamStep(p.lr), FiniteDifferences(rng, p.pairs, p.delta, rademacher)
        return maximize_from_inputs(target, batch, threat, objective, update, p.steps, estimator)
