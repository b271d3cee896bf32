"""MAT: matching adversarial trajectories. MTT with experts that were trained on adversarial examples and smoothed.

    experts:  x~ = argmax_{x' in ball(x)} CE(f(x'), y),   theta <- theta - lr * grad CE(f_theta(x~), y),
              theta*  <- d * theta* + (1 - d) * theta  after each step;   theta*_t, its value after epoch t, is what is matched

The hope is that plain training on the synthetic images leads to where adversarial training leads. Adversarial trajectories change too
fast to be imitated, therefore the average.

From the authors: adversarially trained experts whose weights are smoothed by an exponential moving average, matched as in MTT. From us:
the decay, and the inner maximisation under the campaign's threat model.

Control: ``mtt``, whose experts never saw an adversarial example, and ``random-subset``.

Source: Lai et al.: Robust dataset distillation by matching adversarial trajectories (MAT, 2025), arXiv:2503.12069; read in the abstract
only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from robustkd.condensers.engine.experts import ExpertLoss, ExpertParams
from robustkd.condensers.engine.unrolled import TrajectoryMatching, TrajectoryParams
from robustkd.contracts import Arrays, FitContext, Params
from robustkd.defenses.training.batches import Minibatch
from robustkd.defenses.training.inner import Adversary, InnerMaximisation
from robustkd.lazy import F
from robustkd.targets import ClassifierTarget

if TYPE_CHECKING:
    from torch import Tensor


class SmoothedExpertParams(ExpertParams):
    """How MAT's experts are trained."""

    ema: float | None = Field(
        0.99, gt=0, lt=1, description="keep a moving average of the weights with this decay in their place"
    )


class MATParams(TrajectoryParams):
    experts: SmoothedExpertParams = Field(default_factory=SmoothedExpertParams, description="how the experts are trained")
    inner: InnerMaximisation = Field(
        default_factory=InnerMaximisation, description="the adversarial examples that experts are trained on"
    )


class MAT(TrajectoryMatching):
    """Images on which a network is trained to where adversarial training comes on the real ones."""

    Params: ClassVar[type[Params]] = MATParams
    source = "Lai et al. 2025, arXiv:2503.12069"
    uses_threat = True

    def expert_loss(self, context: FitContext[Arrays]) -> tuple[ExpertLoss, str]:
        """The cross entropy at adversarial examples."""
        adversary = Adversary.under(self.params.inner, context.threat)

        def loss(target: ClassifierTarget, batch: Minibatch) -> Tensor:
            return F.cross_entropy(target(adversary(target, batch)), batch.y)

        return loss, f"adversarial {adversary}"
