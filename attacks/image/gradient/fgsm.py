"""FGSM: one step of size eps along the steepest direction.

    x~ = clip(x + eps * sign(grad_x CE(f(x), y)))

Good for a first look: one gradient a sample. A single step follows a straight picture of the loss and flatters nearly every
defense; where it breaks more than iterative attacks do, these are broken.

Source: Goodfellow, Shlens, Szegedy: Explaining and harnessing adversarial examples (ICLR 2015), section 4.
"""

from __future__ import annotations

from robustkd.attacks.image.engine.ascent import SteepestStep
from robustkd.attacks.image.engine.ball import STEEPEST_REVISIONS, StepSize
from robustkd.attacks.image.engine.from_inputs import maximize_from_inputs
from robustkd.attacks.image.engine.losses import LossParam
from robustkd.attacks.image.engine.objective import ChosenLoss, for_batch
from robustkd.contracts import AttackResult, Batch, Params, Target, ThreatModel
from robustkd.contracts.random import SampleRng


class FGSMParams(Params):
    """The loss whose gradient gives the single step."""

    loss: LossParam = "ce"


class FGSM(ChosenLoss):
    """Fast gradient method; in linf, fast gradient sign method."""

    Params = FGSMParams
    norms = ("linf", "l2", "l1")
    regions = ("given",)
    goals = ("untargeted", "targeted")
    iterative = False
    version = "2"
    revisions = STEEPEST_REVISIONS
    source = "Goodfellow et al. 2015, arXiv:1412.6572"

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """Takes two forward passes and one backward pass for each sample that is classified rightly."""
        objective, update = for_batch(self.params.loss, batch), SteepestStep(StepSize(share=1.0))
        return maximize_from_inputs(target, batch, threat, objective, update, steps=1)
