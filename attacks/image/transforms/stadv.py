"""stAdv: a flow that moves each pixel a little, by projected gradient ascent.

    x'  = x sampled at p + flow(p)
    g   = grad_flow [ loss(f(x'), y) - tau * sum_{p, q neighbours} ||flow(p) - flow(q)||_2 ]
    flow = clip(flow + size * sign(g), -eps, eps)

Good where a defense was trained in a norm: the images differ from the clean ones by much in every norm, and little to the eye. Without
a gradient of the target use ``flow-search``.

Source: Xiao et al.: Spatially transformed adversarial examples (ICLR 2018), arXiv:1801.02612. The authors penalise a rough flow (tau
0.05) and minimise with L-BFGS, for any wrong class and without a bound. The bound, and therefore the projected sign steps and
the restarts, are ours; with tau 0 all within the bound is used.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pydantic import Field
from typing_extensions import override

from robustkd.attacks.image.engine.ascent import AttackState, SteepestStep, Update
from robustkd.attacks.image.engine.ball import StepSize
from robustkd.attacks.image.engine.losses import LossParam
from robustkd.attacks.image.gradient.pgd import PGD, PGDParams
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class StAdvParams(PGDParams):
    steps: int = Field(40, ge=1, description="steps in each restart")
    step_size: float | None = Field(None, gt=0, description="in pixels of displacement; default 2.5 * eps / steps")
    random_start: bool = Field(False, description="start at a random flow, which is rough, else at the clean image")
    loss: LossParam = "margin"
    tau: float = Field(
        0.0, ge=0, description="weight of the flow's roughness, which is subtracted from the loss; the paper's is 0.05"
    )


class StAdv(PGD):
    """Spatially transformed adversarial examples, within a bound."""

    Params = StAdvParams
    space = "flow"
    inputs = "images"
    version = "1"
    source = "Xiao et al. 2018, arXiv:1801.02612"

    @override
    def update(self) -> Update:
        return SmoothFlowStep(StepSize(self.params.step_size, share=2.5 / self.params.steps), self.params.tau)


@dataclass(frozen=True)
class SmoothFlowStep(SteepestStep):
    """The steepest step of the loss less ``tau`` times the roughness of the flow."""

    tau: float

    @override
    def step(self, state: AttackState, t: int) -> Tensor:
        if self.tau:
            state = replace(state, gradient=state.gradient - self.tau * roughness_gradient(state.x))
        return super().step(state, t)


def roughness(flow: Tensor) -> Tensor:
    """(B, 2, H, W) -> (B,) the sum, over pairs of neighbours, of the length of the difference of their flows (the paper's L_flow)."""
    down, right = flow[:, :, 1:] - flow[:, :, :-1], flow[:, :, :, 1:] - flow[:, :, :, :-1]
    # The root has no slope at 0, where the flow begins.
    along = [(part.square().sum(1) + 1e-12).sqrt().flatten(1).sum(1) for part in (down, right)]
    return along[0] + along[1]


def roughness_gradient(flow: Tensor) -> Tensor:
    """(B, 2, H, W) the gradient of ``roughness``."""
    with torch.enable_grad():
        flow = flow.detach().requires_grad_()
        (slope,) = torch.autograd.grad(roughness(flow).sum(), flow)
    return slope
