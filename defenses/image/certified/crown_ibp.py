"""CROWN-IBP: training on linear bounds while the radius grows, and on interval bounds in the end.

    m = beta m_CROWN-IBP + (1 - beta) m_IBP,        beta from beta_start to beta_end while eps grows

Linear bounds are much tighter than intervals of a network that is not yet trained for these, so the training is more stable while
it begins. A step costs about K forward and backward passes more while beta is above 0. ``beta_start: 0`` is the control: IBP.

Ours: weights are initialised as everywhere here; all K classes are bounded at once, without the paper's loss fusion of later work.

Source: Zhang et al.: Towards stable and efficient training of verifiably robust neural networks (ICLR 2020), equation 12 and appendix
C; MNIST: Adam at 0.0005, batches of 256, 200 epochs, of which 10 warm up and 50 grow the radius; kappa from 1 to 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from robustkd.defenses.image.certified.bounds import BoundsParams, BoundsRecipe, BoundsTraining, ball_around
from robustkd.defenses.training import Minibatch
from robustkd.defenses.training.params import BatchSizeParam, EpochsParam, LRParam
from robustkd.targets import ClassifierTarget

if TYPE_CHECKING:
    from torch import Tensor

    from robustkd.certification.network import BoundedNetwork


class CrownIBPParams(BoundsParams):
    milestone_fractions: ClassVar[tuple[float, ...]] = (130 / 200, 190 / 200)
    warm_up_share: ClassVar[float] = 10 / 200
    ramp_share: ClassVar[float] = 50 / 200

    epochs: EpochsParam = 200
    batch_size: BatchSizeParam = 256
    lr: LRParam = 5e-4
    kappa_end: float = Field(0.0, ge=0, le=1, description="weight of the clean loss once the radius is grown")
    beta_start: float = Field(1.0, ge=0, le=1, description="weight of the linear bounds at first; 0 is the control, IBP")
    beta_end: float = Field(0.0, ge=0, le=1, description="the same once the radius is grown")


class CrownIBPRecipe(BoundsRecipe):
    """Margins by linear bounds and by intervals, weighted."""

    def margins(self, target: ClassifierTarget, network: BoundedNetwork, batch: Minibatch, eps: float, grown: float) -> Tensor:
        """beta m_CROWN-IBP + (1 - beta) m_IBP."""
        from robustkd.certification.margins import interval_margins, linear_margins  # late: it imports torch

        p = self.params
        beta = p.beta_start + grown * (p.beta_end - p.beta_start)
        found = network.intervals(ball_around(target, batch.x, eps))
        by_intervals = interval_margins(network, found, batch.y)
        if beta == 0:
            return by_intervals
        return beta * linear_margins(network, found, batch.y) + (1 - beta) * by_intervals


class CrownIBP(BoundsTraining):
    """A network trained on linear bounds first."""

    Params = CrownIBPParams
    recipe = CrownIBPRecipe
    source = "Zhang et al. 2020, arXiv:1906.06316"
