"""SI-FGSM: the mean gradient over darkened copies of the image.

    grad_t = 1/m * sum_{i < m} grad_x J(x_t / 2^i)

Good for transfer; a step costs m gradients. Where darker copies are other images to the network (inputs that are not natural
images), their gradients say little.

Source: Lin et al.: Nesterov accelerated gradient and scale invariance for adversarial attacks (ICLR 2020), section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field
from typing_extensions import override

from robustkd.attacks.image.engine.ascent import AttackState, GradientEstimator
from robustkd.attacks.image.engine.oracle import Objective, Oracle
from robustkd.attacks.image.transferable.momentum import MIFGSM, MomentumParams
from robustkd.attacks.image.transferable.ni_fgsm import NesterovGradient
from robustkd.contracts import ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ScaleMeanGradient:
    """The mean gradient over ``copies`` scales."""

    copies: int

    def __call__(self, oracle: Oracle, state: AttackState, objective: Objective, t: int) -> Tensor:
        """(A, *shape): ``copies`` forward and backward passes."""
        total = torch.zeros_like(state.x)
        for power in range(self.copies):
            scale = 0.5**power
            total += scale * oracle.value_and_grad(scale * state.x, state.rows, objective)[2]
        return total / self.copies


class SIFGSMParams(MomentumParams):
    """The number of scaled copies, and whether the gradients are taken ahead."""

    copies: int = Field(5, ge=1, description="copies at 1, 1/2, 1/4, .. of the brightness (m of the paper)")
    look_ahead: bool = Field(False, description="take the gradients ahead, as ni-fgsm does: SI-NI-FGSM")


class SIFGSM(MIFGSM):
    """Scale-invariant momentum iterative FGSM."""

    Params = SIFGSMParams
    version = "3"
    source = "Lin et al. 2020, arXiv:1908.06281"

    @override
    def estimator(self, threat: ThreatModel, rng: SampleRng) -> GradientEstimator:
        p = self.params
        over_scales = ScaleMeanGradient(p.copies)
        return NesterovGradient(self.size, p.decay, over_scales) if p.look_ahead else over_scales
