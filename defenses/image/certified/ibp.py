"""IBP: training on interval bounds.

    m_j = min over the box of z_y - z_j by intervals through every layer, the last one elided

Good where robustness is to be proved, cheaply: its networks are those that intervals bound well, and less accurate ones. Training
costs two further forward passes a step. ``kappa_end: 1`` is the control, the same training without bounds.

Ours: the shares of warming up and growing are the paper's of MNIST (2,000 and 10,000 of 60,000 steps), the learning rate falls after
the same shares; weights are initialised as everywhere here. The paper trains for a larger radius than it certifies (0.4 for 0.3).

Source: Gowal et al.: On the effectiveness of interval bound propagation for training verifiably robust models (2018), equation 12
and section 4; kappa from 1 to 1/2, Adam at 0.001, batches of 100, 100 epochs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from robustkd.defenses.image.certified.bounds import BoundsParams, BoundsRecipe, BoundsTraining, ball_around
from robustkd.defenses.training import Minibatch
from robustkd.defenses.training.params import BatchSizeParam, EpochsParam
from robustkd.targets import ClassifierTarget

if TYPE_CHECKING:
    from torch import Tensor

    from robustkd.certification.network import BoundedNetwork


class IBPParams(BoundsParams):
    milestone_fractions: ClassVar[tuple[float, ...]] = (15 / 60, 25 / 60)
    warm_up_share: ClassVar[float] = 2 / 60
    ramp_share: ClassVar[float] = 10 / 60

    epochs: EpochsParam = 100
    batch_size: BatchSizeParam = 100


class IBPRecipe(BoundsRecipe):
    """Margins by intervals."""

    def margins(self, target: ClassifierTarget, network: BoundedNetwork, batch: Minibatch, eps: float, grown: float) -> Tensor:
        """Intervals around x."""
        from robustkd.certification.margins import interval_margins  # late: it imports torch

        return interval_margins(network, network.intervals(ball_around(target, batch.x, eps)), batch.y)


class IBP(BoundsTraining):
    """A network whose interval bounds are trained to be tight."""

    Params = IBPParams
    recipe = IBPRecipe
    source = "Gowal et al. 2018, arXiv:1810.12715"
