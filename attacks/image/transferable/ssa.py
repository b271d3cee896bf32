"""SSA: the mean gradient over copies whose spectrum is changed at random.

    T(x) = IDCT(DCT(x + noise) * mask),   noise normal with deviation sigma,   mask uniform in [1 - rho, 1 + rho]
    grad_t = 1/N * sum_i grad_x J(T_i(x_t))

Networks differ in the frequencies that they look at; a change that holds over many spectra holds on more of them.

Good for transfer; a step costs N gradients.

Source: Long et al.: Frequency domain model augmentation for adversarial attack (ECCV 2022), algorithm 1: the DCT of whole images, and
sigma equal to eps. (Public code takes each gradient at T(x), and does not follow it back through T, as the formula says.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field
from typing_extensions import override

from robustkd.attacks.image.engine.ascent import AttackState, GradientEstimator
from robustkd.attacks.image.engine.oracle import Objective, Oracle
from robustkd.attacks.image.transferable.momentum import MIFGSM, MomentumParams
from robustkd.contracts import ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

_SIGMA = 16 / 255
"""The deviation in the paper, whose budget it equals; of norms in which eps is no size of a pixel's change."""


def cosines(size: int, like: Tensor) -> Tensor:
    """(size, size) the orthonormal DCT-II as a matrix: its product with a signal is the spectrum, its transpose is the inverse."""
    at = torch.arange(size, dtype=like.dtype, device=like.device)
    matrix = torch.cos(math.pi / size * (at + 0.5) * at.unsqueeze(1)) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


@dataclass(frozen=True)
class SpectrumMeanGradient:
    """The mean gradient over ``copies`` changed spectra, which are drawn for each sample.

    Attributes:
        rho: by how much a coefficient is changed at most, as a share of it.
        sigma: the deviation of the noise, in pixel units.
    """

    rng: SampleRng
    copies: int
    rho: float
    sigma: float

    def __call__(self, oracle: Oracle, state: AttackState, objective: Objective, t: int) -> Tensor:
        """(A, *shape): ``copies`` forward and backward passes."""
        x, shape = state.x, state.x.shape[1:]
        tall, wide = cosines(shape[-2], x), cosines(shape[-1], x)
        draws = self.rng.fork(t).select(state.rows)
        total = torch.zeros_like(x)
        for _ in range(self.copies):
            noise = self.sigma * draws.normal(shape, dtype=x.dtype)
            mask = draws.uniform(shape, 1 - self.rho, 1 + self.rho, dtype=x.dtype)
            changed = tall.T @ (mask * (tall @ (x + noise) @ wide.T)) @ wide
            gradient = oracle.value_and_grad(changed, state.rows, objective)[2]
            total += tall.T @ (mask * (tall @ gradient @ wide.T)) @ wide  # the map is its own transpose
        return total / self.copies


class SSAParams(MomentumParams):
    """How many spectra, and how far they are changed."""

    copies: int = Field(20, ge=1, description="spectra at each step (N of the paper)")
    rho: float = Field(0.5, ge=0, le=1, description="by how much a coefficient is changed at most, as a share of it")
    sigma: float | None = Field(
        None,
        ge=0,
        description="deviation of the noise in pixel units; default eps in linf, as in the paper, and 16/255 in other norms",
    )


class SSA(MIFGSM):
    """Spectrum simulation attack, with momentum, on (C, H, W) images."""

    Params = SSAParams
    inputs = "images"
    version = "1"
    source = "Long et al. 2022, arXiv:2207.05382"

    @override
    def estimator(self, threat: ThreatModel, rng: SampleRng) -> GradientEstimator:
        p = self.params
        sigma = p.sigma if p.sigma is not None else threat.eps if threat.norm == "linf" else _SIGMA
        return SpectrumMeanGradient(rng, p.copies, p.rho, sigma)
