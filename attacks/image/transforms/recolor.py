"""ReColorAdv: a function of the colour that deceives, by projected gradient ascent on its values at a grid.

    x'(p) = x(p) + g(x(p)),   g interpolated between the points of a grid over the colour cube
    g     = clip(g + size * sign(grad_g loss(f(x'), y)), -eps, eps)

All pixels of one colour get one colour, so textures and edges stay, and each channel may be moved far. It is strong where a network goes
by colour, and weak on images of few colours.

Source: Laidlaw and Feizi: Functional adversarial attacks (NeurIPS 2019), arXiv:1906.00001. The authors take steps of Adam, add a penalty
on differences of neighbouring grid points. The sign steps without the penalty are ours. The colour space is the budget's, RGB or, as in the
paper's main results, CIELUV.
"""

from __future__ import annotations

from pydantic import Field

from robustkd.attacks.image.engine.losses import LossParam
from robustkd.attacks.image.gradient.pgd import PGD, PGDParams


class RecolorParams(PGDParams):
    steps: int = Field(40, ge=1, description="steps in each restart")
    step_size: float | None = Field(None, gt=0, description="in units of a channel in [0, 1]; default 2.5 * eps / steps")
    random_start: bool = Field(False, description="start at a random function of the colour, else at the clean image")
    loss: LossParam = "margin"


class Recolor(PGD):
    """ReColorAdv with projected sign steps."""

    Params = RecolorParams
    space = "colour"
    inputs = "images"
    version = "1"
    source = "Laidlaw and Feizi 2019, arXiv:1906.00001"
