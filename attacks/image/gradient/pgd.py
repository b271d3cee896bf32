"""PGD: projected steps along the steepest direction from a random start, with restarts.

    x_0   = random point of the ball (or x); in l2 of random direction and distance
    x_t+1 = project(x_t + size * steepest(grad_x loss(f(x_t), y)))

Good for everything with honest gradients. It makes a defense look robust that it is not where the cross entropy saturates
(``loss: margin``, ``apgd-dlr``), where gradients are masked or random (``bpda``, ``eot``, ``square``), and where its step
suits neither the budget nor the loss (``apgd-ce``).

Source: Madry et al.: Towards deep learning models resistant to adversarial attacks (ICLR 2018), section 2.1; with a margin
loss it is the CW_inf of the distillation papers (Carlini & Wagner 2017 used the same loss in another search).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.attacks.image.engine.ascent import Search, SearchResult, SteepestStep, Update, fixed_budget, maximize
from robustkd.attacks.image.engine.ball import STEEPEST_REVISIONS, Ball, StepSize
from robustkd.attacks.image.engine.cycles import EarlyStopAtCycle, StopAtCycle
from robustkd.attacks.image.engine.losses import LossName
from robustkd.attacks.image.engine.objective import ChosenLoss, for_batch
from robustkd.contracts import AttackResult, Batch, Params, Target, ThreatModel
from robustkd.contracts.random import SampleRng

if TYPE_CHECKING:
    from torch import Tensor


class PGDParams(Params):
    """The steps, the restarts and their starting points, the loss, and when a sample is done."""

    steps: int = Field(20, ge=1, description="steps in each restart")
    step_size: float | None = Field(None, gt=0, description="in pixel units; default 2.5 * eps / steps")
    restarts: int = Field(1, ge=1, description="attempts from other random starts, on the survivors only")
    random_start: bool = Field(True, description="start at a random point of the ball, else at the clean image")
    loss: LossName = Field("ce", description="the loss to maximize: cross entropy, logit margin, or DLR")
    stop_when_broken: bool = Field(True, description="stop at a sample's first adversarial point")
    stop_at_cycle: StopAtCycle = False


class PGD(ChosenLoss):
    """Projected gradient descent."""

    Params = PGDParams
    norms = ("linf", "l2", "l1")
    regions = ("given",)
    goals = ("untargeted", "targeted")
    version = "2"
    revisions = STEEPEST_REVISIONS
    source = "Madry et al. 2018, arXiv:1706.06083"

    def update(self) -> Update:
        """The rule by which a step moves the images."""
        return SteepestStep(StepSize(self.params.step_size, share=2.5 / self.params.steps))

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """Takes at most ``restarts * (steps + 1)`` forward and ``restarts * steps`` backward passes a sample."""
        p = self.params
        objective, update = for_batch(p.loss, batch), self.update()
        stop = EarlyStopAtCycle.of(batch, p.steps) if p.stop_at_cycle else None

        def attempt(search: Search, rows: Tensor, ball: Ball, restart: int) -> SearchResult:
            draws = rng.fork(restart).select(rows)
            return maximize(
                search.oracle,
                rows,
                ball,
                ball.random_start(draws) if p.random_start else ball.centre,  # no name here, which would keep it in memory
                objective=objective,
                update=update,
                steps=p.steps,
                stop_when_broken=p.stop_when_broken,
                early_stop=stop,
            )

        result = fixed_budget(target, batch, threat, attempt, restarts=p.restarts)
        return result if stop is None else replace(result, skipped=stop.skipped)
