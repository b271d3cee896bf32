"""SABR: training on interval bounds of a small box around an adversarial example.

    tau = lambda eps
    x*  = argmax of the loss over the ball of radius eps - tau, by PGD
    m   = interval bounds over the box of radius tau around x*, which lies within the ball of radius eps

Intervals over the whole ball force a network to be simpler than it would have to be; those over a small box at its worst place much
less. What such a network withstands is proved by tighter bounds than intervals (``crown``, ``exact``). ``lam: 1`` is the control: IBP.

Ours: the radius grows linearly (the authors' code: smoothly, exponentially at first), PGD's step stays at half of its radius, weights
are initialised as everywhere here, and the regulariser of Shi et al. (2021), which goes with the authors' initialisation, is left out.

Source: Mueller et al.: Certified training: small boxes are all you need (ICLR 2023), algorithm 1 and appendix C, and the authors' public
code; MNIST: Adam at 0.0005, batches of 256, 70 epochs, of which 2 warm up and 20 grow the radius, rate times 0.2 after 50 and 60;
lambda 0.4 for a radius of 0.1 and 0.6 for 0.3; L1 1e-5 and 1e-6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from robustkd.contracts import ThreatModel
from robustkd.defenses.image.certified.bounds import BoundsParams, BoundsRecipe, BoundsTraining, ball_around
from robustkd.defenses.training import InnerMaximisation, Minibatch
from robustkd.defenses.training.inner import Adversary
from robustkd.defenses.training.params import BatchSizeParam, EpochsParam, LRParam
from robustkd.lazy import nn
from robustkd.targets import ClassifierTarget

if TYPE_CHECKING:
    from torch import Tensor

    from robustkd.certification.network import BoundedNetwork


class SABRInner(InnerMaximisation):
    """Where the small box is put.

    Attributes:
        step_share: the default step as a share of the radius.
    """

    step_share: ClassVar[float] = 1 / 2

    steps: int = Field(8, ge=1, description="steps for each example")


class SABRParams(BoundsParams):
    milestone_fractions: ClassVar[tuple[float, ...]] = (50 / 70, 60 / 70)
    warm_up_share: ClassVar[float] = 2 / 70
    ramp_share: ClassVar[float] = 20 / 70

    epochs: EpochsParam = 70
    batch_size: BatchSizeParam = 256
    lr: LRParam = 5e-4
    gamma: float = Field(0.2, gt=0, le=1, description="for steps: the factor at each milestone")
    kappa_start: float = Field(0.0, ge=0, le=1, description="weight of the clean loss while warming up")
    kappa_end: float = Field(0.0, ge=0, le=1, description="the same once the radius is grown")
    lam: float = Field(0.4, gt=0, le=1, description="lambda, the box's share of the radius; 1 is the control, IBP")
    l1: float = Field(1e-5, ge=0, description="weight of the sum of the absolute weights of linear and convolutional layers")
    inner: SABRInner = Field(default_factory=SABRInner, description="how the place of the box is found")


class SABRRecipe(BoundsRecipe):
    """Margins by intervals over a small box."""

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """CE(-m, y) + l1 |w|_1."""
        loss, logged = super().loss(target, batch)
        weights = (layer.weight for layer in target.module.modules() if isinstance(layer, (nn.Linear, nn.Conv2d)))
        return (loss + self.params.l1 * sum(weight.abs().sum() for weight in weights) if self.params.l1 else loss), logged

    def margins(self, target: ClassifierTarget, network: BoundedNetwork, batch: Minibatch, eps: float, grown: float) -> Tensor:
        """Intervals around x*."""
        from robustkd.certification.margins import interval_margins  # late: it imports torch

        p = self.params
        centre = batch.x
        if p.lam < 1:
            centre = Adversary.under(p.inner, ThreatModel("linf", (1 - p.lam) * eps))(target, batch)
        return interval_margins(network, network.intervals(ball_around(target, centre, p.lam * eps)), batch.y)


class SABR(BoundsTraining):
    """A network trained on bounds over small boxes."""

    Params = SABRParams
    recipe = SABRRecipe
    source = "Mueller et al. 2023, arXiv:2210.04871"
