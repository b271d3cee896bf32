"""Rotations and translations by projected gradient ascent on their parameters.

    theta_0   = random angle and shift within the budget
    theta_t+1 = clip(theta_t + size * sign(grad_theta loss(f(T_theta(x)), y)))

The loss has many local maxima over three parameters, so the grid (``rotate-grid``) is usually stronger and this attack cheaper: it
shows what a gradient alone would find, and it reaches points between those of the grid.

Source: Engstrom et al.: Exploring the landscape of spatial robustness (ICML 2019), arXiv:1712.02779, "first-order method". Ours are
the restarts and the margin as the usual loss.
"""

from __future__ import annotations

from pydantic import Field

from robustkd.attacks.image.engine.losses import LossParam
from robustkd.attacks.image.gradient.pgd import PGD, PGDParams


class RotatePGDParams(PGDParams):
    step_size: float | None = Field(
        None, gt=0, description="share of the largest rotation and translation; default 2.5 * eps / steps"
    )
    restarts: int = Field(5, ge=1, description="attempts from other random transforms, on the survivors only")
    random_start: bool = Field(True, description="start at a random transform, else at the clean image")
    loss: LossParam = "margin"


class RotatePGD(PGD):
    """Projected gradient descent on the angle and the shift."""

    Params = RotatePGDParams
    space = "spatial"
    inputs = "images"
    version = "1"
    source = "Engstrom et al. 2019, arXiv:1712.02779"
