"""FTD: flat trajectory distillation. MTT with experts that GSAM has trained, and a moving average of the pixels.

    experts:  theta <- theta - lr * ( g_p - alpha * (g - its part along g_p) ),   g_p the gradient at the worst weights within rho

What a student accumulates of error on the way hurts less where the trajectory is flat.

From the authors: GSAM with rho 2, alpha 0.4 and the adaptive radius, the average of the pixels with decay 0.999. From us: as in ``mtt``.
The authors' flag ``--adaptive`` is true for every text; here it is on, as in their runs.

Control: ``mtt`` (``rho: 0``), and ``random-subset``.

Source: Du et al.: Minimizing the accumulated trajectory error to improve dataset distillation (CVPR 2023), arXiv:2211.11004; settings as
in the authors' code.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from robustkd.condensers.engine.experts import ExpertParams
from robustkd.condensers.engine.unrolled import TrajectoryMatching, TrajectoryParams
from robustkd.contracts import Params


class FlatExpertParams(ExpertParams):
    """How FTD's experts are trained."""

    rho: float = Field(2.0, ge=0, description="radius of GSAM, which flattens the trajectory; 0 for plain SGD")


class FTDParams(TrajectoryParams):
    """Parameters of ``ftd``."""

    ema: float | None = Field(0.999, gt=0, lt=1, description="deploy a moving average of the pixels with this decay")
    experts: FlatExpertParams = Field(default_factory=FlatExpertParams, description="how the experts are trained")


class FTD(TrajectoryMatching):
    """Images that lead a network along a flat trajectory."""

    Params: ClassVar[type[Params]] = FTDParams
    source = "Du et al. 2023, arXiv:2211.11004"
