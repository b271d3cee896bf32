"""VMI-FGSM: momentum with the gradient tuned by how it varied around the point before.

    grad_t = grad J(x_t) + v_t
    v_{t+1} = 1/N * sum_i grad J(x_t + r_i) - grad J(x_t),   r_i uniform in the ball of radius reach * eps

Good for transfer; a step costs N + 1 gradients.

Source: Wang & He: Enhancing the transferability of adversarial attacks through variance tuning (CVPR 2021), algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field
from typing_extensions import override

from robustkd.attacks.image.engine.ascent import AttackState, GradientEstimator, gradient_at_point
from robustkd.attacks.image.engine.oracle import Objective, Oracle
from robustkd.attacks.image.transferable.momentum import MIFGSM, MomentumParams
from robustkd.contracts import ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class VarianceTunedGradient:
    """The gradient plus the variance found at the step before (``memory["variance"]``)."""

    rng: SampleRng
    neighbours: int
    reach: float
    steps: int

    def __call__(self, oracle: Oracle, state: AttackState, objective: Objective, t: int) -> Tensor:
        """(A, *shape): ``neighbours + 1`` forward and backward passes, one at the last step."""
        gradient = gradient_at_point(oracle, state, objective, t)
        tuned = gradient + state.memory["variance"] if t else gradient
        if t < self.steps - 1:
            around = state.ball.resized(self.reach, state.x)
            draws = self.rng.fork(t).select(state.rows)
            total = torch.zeros_like(state.x)
            for _ in range(self.neighbours):
                total += oracle.value_and_grad(around.random_point(draws), state.rows, objective)[2]
            state.memory["variance"] = total / self.neighbours - gradient
        return tuned


class VMIFGSMParams(MomentumParams):
    """The number and the radius of the neighbours that the variance is estimated from."""

    neighbours: int = Field(20, ge=1, description="points around each iterate (N of the paper)")
    reach: float = Field(1.5, gt=0, description="radius of these points, in multiples of eps (beta of the paper)")


class VMIFGSM(MIFGSM):
    """Variance-tuned momentum iterative FGSM (VMI-FGSM)."""

    Params = VMIFGSMParams
    source = "Wang & He 2021, arXiv:2103.15571"

    @override
    def estimator(self, threat: ThreatModel, rng: SampleRng) -> GradientEstimator:
        p = self.params
        return VarianceTunedGradient(rng, p.neighbours, p.reach, p.steps)
