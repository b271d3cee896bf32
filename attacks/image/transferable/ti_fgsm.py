"""TI-FGSM: steps along the gradient convolved with a kernel, as if averaged over shifted copies of the image.

    x_{t+1} = project(x_t + size * steepest(W * grad J(x_t)))

Good for transfer to networks that look at other places of the image. The kernel should be small beside the image, or it
blurs away what there is to follow.

Source: Dong et al.: Evading defenses to transferable adversarial examples by translation-invariant attacks (CVPR 2019),
section 3.2, with the Gaussian kernel of the authors' code: (2k + 1)^2 pixels, sigma = k / 3. (The paper writes k / sqrt(3), which
blurs away more: white-box, fewer images fall.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pydantic import Field
from typing_extensions import override

from robustkd.attacks.image.engine.ascent import AttackState, GradientEstimator, Update
from robustkd.attacks.image.transferable.di2_fgsm import DI2FGSM, DI2FGSMParams
from robustkd.contracts import ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.lazy import F, torch

if TYPE_CHECKING:
    from torch import Tensor


def smoothed(gradient: Tensor, kernel: int) -> Tensor:
    """(A, C, H, W), each channel convolved with a Gaussian of ``kernel`` x ``kernel`` pixels, which has two factors."""
    half = kernel // 2
    at = torch.arange(-half, half + 1, dtype=gradient.dtype, device=gradient.device)
    bell = torch.softmax(-4.5 * (at / max(half, 1)) ** 2, 0)  # exp(-at^2 / 2 sigma^2), sigma = half / 3
    channels = gradient.shape[1]
    tall = F.conv2d(gradient, bell.view(1, 1, -1, 1).expand(channels, 1, -1, 1), padding=(half, 0), groups=channels)
    return F.conv2d(tall, bell.view(1, 1, 1, -1).expand(channels, 1, 1, -1), padding=(0, half), groups=channels)


@dataclass(frozen=True)
class SmoothedStep:
    """Another update, with the gradient smoothed first."""

    update: Update
    kernel: int

    def step(self, state: AttackState, t: int) -> Tensor:
        """(A, *shape) the points x_{t+1}, before they are projected."""
        return self.update.step(replace(state, gradient=smoothed(state.gradient, self.kernel)), t)


class TIFGSMParams(DI2FGSMParams):
    """The width of the Gaussian kernel, and the settings of momentum and diverse inputs."""

    decay: float = Field(0.0, ge=0, description="how much of the accumulated gradient stays; 1 makes it TI-MI-FGSM")
    kernel: int = Field(15, ge=1, description="width of the Gaussian in pixels; an odd number")
    probability: float = Field(0.0, ge=0, le=1, description="of diverse inputs (di2-fgsm) as well; .5 makes it TI-DIM")


class TIFGSM(DI2FGSM):
    """Translation-invariant iterative FGSM, on (C, H, W) images."""

    Params = TIFGSMParams
    version = "2"
    source = "Dong et al. 2019, arXiv:1904.02884"

    @override
    def update(self, threat: ThreatModel) -> Update:
        return SmoothedStep(super().update(threat), self.params.kernel)

    @override
    def estimator(self, threat: ThreatModel, rng: SampleRng) -> GradientEstimator | None:
        return super().estimator(threat, rng) if self.params.probability else None
