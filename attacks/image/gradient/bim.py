"""BIM (iterative FGSM): steps of fixed size from the clean image, cut to the ball after each.

    x_0 = x,   x_{t+1} = project(x_t + size * sign(grad_x CE(f(x_t), y)))

Good as the plainest iterative attack, and to compare with older papers. It has one start: where the loss is flat or kinked
at the clean image it gets nowhere, and ``pgd`` with restarts finds more.

Source: Kurakin, Goodfellow, Bengio: Adversarial examples in the physical world (2017), section 2.2.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.attacks.image.engine.ascent import Search, SearchResult, SteepestStep, fixed_budget, maximize
from robustkd.attacks.image.engine.ball import STEEPEST_REVISIONS, Ball, StepSize
from robustkd.attacks.image.engine.cycles import EarlyStopAtCycle, StopAtCycle
from robustkd.attacks.image.engine.losses import LossName
from robustkd.attacks.image.engine.objective import ChosenLoss, for_batch
from robustkd.contracts import AttackResult, Batch, Params, Target, ThreatModel
from robustkd.contracts.random import SampleRng

if TYPE_CHECKING:
    from torch import Tensor


class BIMParams(Params):
    """The number and the length of the steps, and the loss that they maximize."""

    steps: int = Field(10, ge=1, description="steps")
    step_size: float | None = Field(None, gt=0, description="in pixel units; default 1.25 * eps / steps, the paper's ratio")
    loss: LossName = Field("ce", description="the loss to maximize: cross entropy, logit margin, or DLR")
    stop_at_cycle: StopAtCycle = False


class BIM(ChosenLoss):
    """Basic iterative method (iterative FGSM)."""

    Params = BIMParams
    norms = ("linf", "l2", "l1")
    regions = ("given",)
    goals = ("untargeted", "targeted")
    version = "2"
    revisions = STEEPEST_REVISIONS
    source = "Kurakin et al. 2017, arXiv:1607.02533"

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """Takes at most ``steps + 1`` forward and ``steps`` backward passes a sample."""
        p, objective = self.params, for_batch(self.params.loss, batch)
        update = SteepestStep(StepSize(p.step_size, share=1.25 / p.steps))
        stop = EarlyStopAtCycle.of(batch, p.steps) if p.stop_at_cycle else None

        def attempt(search: Search, rows: Tensor, ball: Ball, restart: int) -> SearchResult:
            return maximize(
                search.oracle, rows, ball, ball.centre, objective=objective, update=update, steps=p.steps, early_stop=stop
            )

        result = fixed_budget(target, batch, threat, attempt)
        return result if stop is None else replace(result, skipped=stop.skipped)
