"""The projection onto a perceptual bound by Newton's method.

    x' <- clip(x' - (d(x', x) - eps) * g / ||g||_2^2),   g the gradient of d at x'

Source: Laidlaw, Singla, Feizi: Perceptual adversarial robustness (ICLR 2021), arXiv:2006.12655, appendix A.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustkd.attacks.image.engine.perceptual_ball import PerceptualBall, squared
from robustkd.lazy import torch
from robustkd.scoring.distances import per_sample

if TYPE_CHECKING:
    from torch import Tensor

_OVERSHOOT = 0.1


def newton_projection(ball: PerceptualBall, x: Tensor, steps: int = 10) -> Tensor:
    """(B, *shape) points inside the balls: by Newton's steps, and where these end outside, on the line from the centre to ``x``.

    Takes at most ``steps`` forward and backward passes, and those of ``ball.project``.
    """
    found, live = x.clamp(*ball.bounds), torch.arange(len(x), device=x.device)
    for _ in range(steps):
        if not len(live):
            break
        here = ball.select(live)
        spent, slope = here.distance_and_gradient(found[live])
        outside = ~here.holds(spent)
        live, here, spent, slope = live[outside], here.select(outside), spent[outside], slope[outside]
        excess = (1 + _OVERSHOOT) * (spent - here.reach) + _OVERSHOOT * _OVERSHOOT * here.eps
        found[live] = (found[live] - per_sample(excess, x) * slope / squared(slope)).clamp(*ball.bounds)
    if not len(live):
        return found
    here = ball.select(live)
    inside = per_sample(here.holds(here.distance(found[live])), x)
    found[live] = here.project(torch.where(inside, found[live], x[live]))
    return found
