"""NI-FGSM: momentum with the gradient taken where the momentum leads.

    slope_t = grad J(x_t + size * decay * n * g_t),   n: the number of pixel values

The paper writes g_t itself there; but made of slopes divided by their 1-norm that is no jump at all, and its code divides them by
their mean size instead: hence n. In l2 and l1 the jump is the step that the momentum alone would make.

Good for transfer, at the price of ``mi-fgsm``: one gradient a step. Not meant as a white-box attack.

Source: Lin et al.: Nesterov accelerated gradient and scale invariance for adversarial attacks (ICLR 2020), section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from robustkd.attacks.image.engine.ascent import Climbers, Slope, gradient_at_point
from robustkd.attacks.image.engine.ball import StepSize
from robustkd.attacks.image.engine.oracle import Objective, Oracle
from robustkd.attacks.image.transferable.momentum import MIFGSM
from robustkd.contracts import ThreatModel
from robustkd.contracts.random import SampleRng

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LookAhead:
    """The slope ``of`` the point that the momentum alone would lead to."""

    size: StepSize
    decay: float
    of: Slope = gradient_at_point

    def __call__(self, oracle: Oracle, climbers: Climbers, objective: Objective, t: int) -> Tensor:
        """(A, *shape)."""
        if t == 0:
            return self.of(oracle, climbers, objective, t)
        ball, momentum = climbers.ball, climbers.memory["momentum"]
        jump = momentum * momentum[0].numel() if ball.norm == "linf" else ball.steepest(momentum)
        ahead = climbers.x + self.size.within(ball) * self.decay * jump
        return self.of(oracle, replace(climbers, x=ahead.clamp(*ball.bounds)), objective, t)


class NIFGSM(MIFGSM):
    """Nesterov iterative FGSM: two forward passes and one backward pass a step."""

    version = "3"
    source = "Lin et al. 2020, arXiv:1908.06281"

    def slope(self, threat: ThreatModel, rng: SampleRng) -> Slope:
        """The gradient ahead."""
        return LookAhead(self.size, self.params.decay)
