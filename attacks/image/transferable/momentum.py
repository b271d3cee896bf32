"""MI-FGSM: steps along an accumulated gradient; and the frame of the attacks that give it another gradient.

    g_{t+1} = decay * g_t + grad_t / ||grad_t||_1
    x_{t+1} = project(x_t + size * steepest(g_{t+1})),   x_0 = x,  g_0 = 0

``grad_t`` is the gradient at x_t; in NI-, DI2-, SI- and VMI-FGSM it is one taken elsewhere, or several. They were made
for transfer: crafted on one network, such inputs fool others more often than those of PGD do.

Good for examples that are to fool another network than the one they are made on. White-box, ``pgd`` and APGD find more.

Source: Dong et al.: Boosting adversarial attacks with momentum (CVPR 2018), algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.attacks.image.engine.ascent import (
    AttackState,
    GradientEstimator,
    GradientStep,
    Search,
    SearchResult,
    Update,
    fixed_budget,
    maximize,
)
from robustkd.attacks.image.engine.ball import STEEPEST_REVISIONS, Ball, StepSize
from robustkd.attacks.image.engine.losses import LossParam
from robustkd.attacks.image.engine.objective import ChosenLoss, for_batch
from robustkd.contracts import AttackResult, Batch, Params, Target, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch
from robustkd.scoring.distances import distance, per_sample

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class MomentumStep(GradientStep):
    """One step along the accumulated gradient (``memory["momentum"]``)."""

    size: StepSize
    decay: float

    def step(self, state: AttackState, t: int) -> Tensor:
        """(A, *shape) the points x_{t+1}, before they are projected."""
        gradient = state.gradient
        unit = gradient / per_sample(distance(gradient, "l1"), gradient).clamp_min(torch.finfo(gradient.dtype).tiny)
        momentum = unit if t == 0 else self.decay * state.memory["momentum"] + unit
        state.memory["momentum"] = momentum
        return state.x + self.size.within(state.ball) * state.ball.steepest(momentum, state.x)


class MomentumParams(Params):
    """Parameters of ``mi-fgsm``, which the attacks of its family share."""

    steps: int = Field(10, ge=1, description="steps")
    step_size: float | None = Field(None, gt=0, description="in pixel units; default eps / steps, as in the papers")
    decay: float = Field(1.0, ge=0, description="how much of the accumulated gradient stays in each step")
    loss: LossParam = "ce"
    random_start: bool = Field(False, description="start at a random point of the ball, else at the clean image")


class MIFGSM(ChosenLoss):
    """Momentum iterative FGSM; a subclass gives it another gradient estimator or update."""

    Params = MomentumParams
    norms = ("linf", "l2", "l1")
    regions = ("given",)
    goals = ("untargeted", "targeted")
    version = "2"
    revisions = STEEPEST_REVISIONS
    source = "Dong et al. 2018, arXiv:1710.06081"

    @property
    def size(self) -> StepSize:
        """The size of each step; eps / steps by default."""
        return StepSize(self.params.step_size, share=1 / self.params.steps)

    def update(self, threat: ThreatModel) -> Update:
        """The update that is made with the estimated gradient."""
        return MomentumStep(self.size, self.params.decay)

    def estimator(self, threat: ThreatModel, rng: SampleRng) -> GradientEstimator | None:
        """The gradient estimator; None for the gradient at the point."""
        return None

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """Takes at most ``steps + 1`` forward and ``steps`` backward passes a sample, or those that the estimator needs."""
        objective, update, estimator = for_batch(self.params.loss, batch), self.update(threat), self.estimator(threat, rng)

        def attempt(search: Search, rows: Tensor, ball: Ball, restart: int) -> SearchResult:
            steps = self.params.steps
            start = ball.random_point(rng.fork("start").select(rows)) if self.params.random_start else ball.centre
            return maximize(
                search.oracle, rows, ball, start, objective=objective, update=update, steps=steps, estimator=estimator
            )

        return fixed_budget(target, batch, threat, attempt)
