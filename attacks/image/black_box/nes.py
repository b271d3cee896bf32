"""NES: PGD on a gradient estimated with Gaussian directions.

    e_t     = 1/(2 n sigma) * sum_i (J(x_t + sigma u_i) - J(x_t - sigma u_i)) u_i,   u_i ~ N(0, I)
    g_t     = momentum * g_{t-1} + (1 - momentum) * e_t
    x_{t+1} = project(x_t + size * steepest(g_t))

Good where scores are all that is seen, and the image is small: the estimate needs the more queries the more pixels there
are. Saturated scores have no differences to estimate from.

Source: Ilyas et al.: Black-box adversarial attacks with limited queries and information (ICML 2018), algorithm 1 and
section 3.1. The momentum is that of the authors' code (labsix/limited-blackbox-attacks), which also halves its step where the loss stays;
here the step is constant, and the loss is the margin.
"""

from __future__ import annotations

from pydantic import Field

from robustkd.attacks.image.engine.ascent import SteepestStep
from robustkd.attacks.image.engine.ball import STEEPEST_REVISIONS, StepSize
from robustkd.attacks.image.engine.estimates import FiniteDifferences, Remembered, gaussian
from robustkd.attacks.image.engine.from_inputs import maximize_from_inputs
from robustkd.attacks.image.engine.losses import LossParam
from robustkd.attacks.image.engine.objective import ChosenLoss, for_batch
from robustkd.contracts import AttackResult, Batch, Params, Target, ThreatModel
from robustkd.contracts.random import SampleRng


class NESParams(Params):
    """Parameters of ``nes``; it makes ``steps * (2 * pairs + 1)`` queries at most."""

    steps: int = Field(50, ge=1, description="steps")
    step_size: float | None = Field(None, gt=0, description="in pixel units; default 2.5 * eps / steps")
    pairs: int = Field(25, ge=1, description="directions for each estimate, each looked at both ways")
    sigma: float = Field(0.001, gt=0, description="how far to look, in pixel units")
    momentum: float = Field(0.9, ge=0, lt=1, description="share of the former estimates in each; 0: each step forgets")
    loss: LossParam = "margin"


class NES(ChosenLoss):
    """Natural evolution strategies: needs no gradient."""

    Params = NESParams
    norms = ("linf", "l2", "l1")
    regions = ("given",)
    goals = ("untargeted", "targeted")
    gradients = False
    version = "3"  # 2 had no momentum, and cut queries back into the pixel range
    revisions = STEEPEST_REVISIONS
    source = "Ilyas et al. 2018, arXiv:1804.08598"

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """Takes at most ``steps * (2 * pairs + 1) + 1`` forward passes a sample."""
        p, objective = self.params, for_batch(self.params.loss, batch)
        update = SteepestStep(StepSize(p.step_size, share=2.5 / p.steps))
        estimator = Remembered(FiniteDifferences(rng, p.pairs, p.sigma, gaussian), p.momentum)
        return maximize_from_inputs(target, batch, threat, objective, update, p.steps, estimator)
