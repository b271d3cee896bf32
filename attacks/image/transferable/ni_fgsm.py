"""NI-FGSM: momentum with the gradient taken where the momentum leads.

    grad_t = grad J(x_t + size * decay * n * g_t),   n: the number of pixel values

The paper writes g_t itself there; but made of gradients divided by their 1-norm that is no jump at all, and its code divides them by
their mean size instead: hence n. In l2 and l1 the jump is the step that the momentum alone would make.

Good for transfer, at the price of ``mi-fgsm``: one gradient a step. Not meant as a white-box attack.

Source: Lin et al.: Nesterov accelerated gradient and scale invariance for adversarial attacks (ICLR 2020), section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from typing_extensions import override

from robustkd.attacks.image.engine.ascent import AttackState, GradientEstimator, gradient_at_point
from robustkd.attacks.image.engine.ball import StepSize
from robustkd.attacks.image.engine.oracle import Objective, Oracle
from robustkd.attacks.image.transferable.momentum import MIFGSM
from robustkd.contracts import ThreatModel
from robustkd.contracts.random import SampleRng

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class NesterovGradient:
    """The estimator ``of`` at the point that the momentum alone would lead to."""

    size: StepSize
    decay: float
    of: GradientEstimator = gradient_at_point

    def __call__(self, oracle: Oracle, state: AttackState, objective: Objective, t: int) -> Tensor:
        """(A, *shape) the estimate of ``of`` at the point ahead: as many passes as ``of`` makes."""
        if t == 0:
            return self.of(oracle, state, objective, t)
        ball, momentum = state.ball, state.memory["momentum"]
        jump = momentum * momentum[0].numel() if ball.norm == "linf" else ball.steepest(momentum, state.x)
        ahead = state.x + self.size.within(ball) * self.decay * jump
        return self.of(oracle, replace(state, x=ahead.clamp(*ball.bounds)), objective, t)


class NIFGSM(MIFGSM):
    """Nesterov iterative FGSM: two forward passes and one backward pass a step."""

    version = "3"
    source = "Lin et al. 2020, arXiv:1908.06281"

    @override
    def estimator(self, threat: ThreatModel, rng: SampleRng) -> GradientEstimator:
        return NesterovGradient(self.size, self.params.decay)
