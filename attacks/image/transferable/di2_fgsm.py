"""DI2-FGSM: the gradient at a randomly shrunk and shifted copy of the image.

    grad_t = grad_x J(T(x_t)),   T: with some probability, shrink to a random size and pad with zeros at random

Good for transfer. White-box it maximizes the loss of copies, not of the image itself: use ``pgd``.

Source: Xie et al.: Improving transferability of adversarial examples with input diversity (CVPR 2019), section 3.3. The
paper enlarges the canvas (299 to 330 pixels); here, as in torchattacks, the image is shrunk inside a canvas of its own
size, so that every network can take it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field
from typing_extensions import override

from robustkd.attacks.image.engine.ascent import AttackState, GradientEstimator
from robustkd.attacks.image.engine.oracle import Objective, Oracle, gradient_of
from robustkd.attacks.image.transferable.momentum import MIFGSM, MomentumParams
from robustkd.contracts import ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch
from robustkd.scoring.distances import per_sample

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class DiverseInputGradient:
    """The gradient at a random copy of each sample, which is transformed differently for every sample.

    Attributes:
        probability: of a sample being transformed at a step.
        smallest: of the sizes to shrink to.
    """

    rng: SampleRng
    probability: float
    smallest: float

    def __call__(self, oracle: Oracle, state: AttackState, objective: Objective, t: int) -> Tensor:
        """(A, *shape): one forward and one backward pass."""
        from robustkd.transforms.resize_pad import shrunk  # late: it imports torch

        draws = self.rng.fork(t).select(state.rows).uniform((4,), dtype=state.x.dtype)
        chosen = per_sample(draws[:, 0] < self.probability, state.x)
        with torch.enable_grad():
            x = state.x.detach().requires_grad_()
            copy = shrunk(x, self.smallest + (1 - self.smallest) * draws[:, 1], 2 * draws[:, 2:] - 1)
            copy = torch.where(chosen, copy, x)
        _, _, gradient = oracle.value_and_grad(copy, state.rows, objective)
        return gradient_of(copy, x, gradient)


class DI2FGSMParams(MomentumParams):
    """How often and how far the inputs are resized, and the decay of the momentum."""

    decay: float = Field(0.0, ge=0, description="how much of the accumulated gradient stays; 1 makes it M-DI2-FGSM")
    probability: float = Field(0.5, ge=0, le=1, description="of a sample being transformed at a step")
    smallest: float = Field(0.9, gt=0, le=1, description="smallest size to shrink to, as a share of the image's")


class DI2FGSM(MIFGSM):
    """Diverse inputs iterative FGSM, on (C, H, W) images: two forward passes and one backward pass a step."""

    Params = DI2FGSMParams
    inputs = "images"
    source = "Xie et al. 2019, arXiv:1803.06978"

    @override
    def estimator(self, threat: ThreatModel, rng: SampleRng) -> GradientEstimator | None:
        return DiverseInputGradient(rng, self.params.probability, self.params.smallest)
