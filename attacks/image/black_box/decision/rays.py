"""RayS: search for the direction of signs along which the boundary is nearest, block by block.

    d = (1, .., 1), r = inf
    flip the signs of one block of pixels: d'      (the whole image, then halves, quarters, .., then again)
    if x + r d' is adversarial: d = d', and r is searched for anew in (0, r]

Good in linf, with nothing to tune: most flips cost one query. It sees the corners of the ball alone, so in l2 it is no use.

Source: Chen & Gu: RayS: a ray searching method for hard-label adversarial attack (KDD 2020), algorithms 1 to 3. Ours: the last
step outwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from robustkd.attacks.image.engine.decisions import DecisionAttack, DecisionParams, Decisions, onto_boundary
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch
from robustkd.scoring.distances import per_sample

if TYPE_CHECKING:
    from torch import Tensor


class RaySParams(DecisionParams):
    norm: Literal["linf"] | None = Field(None, description="what is minimised; default: the threat's norm")
    tolerance: float = Field(
        0.001, gt=0, description="how exactly the boundary is searched for, in pixel units; the authors' value"
    )


class RayS(DecisionAttack):
    """RayS, which needs decisions alone and draws no random numbers."""

    Params = RaySParams
    norms = ("linf",)
    source = "Chen & Gu 2020, arXiv:2006.12792"

    def search(self, decisions: Decisions, rows: Tensor, rng: SampleRng) -> None:
        """Run algorithm 3 of the paper."""
        low, high = decisions.bounds
        width, size = float(torch.as_tensor(high - low).max()), decisions.clean[0].numel()
        signs = -torch.ones_like(decisions.clean).flatten(1)  # the first flip makes them +1
        blocks, block = 1, 0
        while len(rows := decisions.going(rows)):
            clean = decisions.clean[rows]
            length = -(-size // blocks)
            flipped = signs[rows]
            flipped[:, block * length : (block + 1) * length] *= -1
            block += 1
            if block * length >= size:
                blocks, block = (2 * blocks if length > 1 else 1), 0
            radius = decisions.nearest.norm[rows].clamp_max(width)
            x = (clean + per_sample(radius, clean) * flipped.view_as(clean)).clamp(*decisions.bounds)
            better = decisions(x, rows)
            signs[rows[better]] = flipped[better]
            onto_boundary(decisions, x[better], rows[better], self.params.tolerance / radius[better])
