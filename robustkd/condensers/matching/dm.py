"""DM: distribution matching. The mean feature of each class's synthetic images is that of its real ones, in random networks.

    min_X  E_theta  sum_c || mean_{x in c} f_theta(A(x))  -  mean_{x in X_c} f_theta(A(x)) ||^2

f_theta are the features in front of the last linear layer of a network with random weights, A one differentiable augmentation for both.

From the authors: the loss, the augmentation, SGD on the pixels from real images. From us: pixels are kept in [0, 1] (theirs are normalised
and free); all classes go through the network in one pass.

Control: ``random-subset``, which is where the pixels start.

Source: Zhao, Bilen: Dataset condensation with distribution matching (WACV 2023), arXiv:2110.04181, algorithm 1; settings as in the
authors' code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from robustkd.condensers.engine.distributions import DistributionMatching, DistributionParams
from robustkd.contracts import Params
from robustkd.targets import ClassifierTarget
from robustkd.targets.activations import with_penultimate

if TYPE_CHECKING:
    from torch import Tensor


class DMParams(DistributionParams):
    """Parameters of ``dm``."""


class DM(DistributionMatching):
    """Images whose mean features are those of the real ones."""

    Params: ClassVar[type[Params]] = DMParams
    source = "Zhao & Bilen 2023, arXiv:2110.04181"

    def compared(self, network: ClassifierTarget, x: Tensor) -> list[tuple[float, Tensor]]:
        """The features in front of the last linear layer."""
        return [(1.0, with_penultimate(network, x)[1])]
