"""GeoDA: from the clean image along the estimated normal of the boundary.

    v = mean_b phi(x_b + sigma u_b) u_b,   phi = 1 where adversarial, else -1      (at the boundary point x_b)
    x_b = x + r steepest(v),   r the smallest that is adversarial

as if the boundary were flat near the image. The later a step, the more of the queries it takes for its estimate.

Good with few queries in l2 and linf; where the boundary is curved it stops short of ``hopskipjump``.

Source: Rahmati, Moosavi-Dezfooli, Frossard, Dai: GeoDA: a geometric framework for black-box adversarial attacks (CVPR 2020),
algorithms 1 and 2. Ours: how the boundary is looked for along the normal, and how many steps there are.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.attacks.image.engine.decisions import (
    DecisionAttack,
    DecisionParams,
    Decisions,
    boundary_points,
    mean_direction,
    onto_boundary,
    unit,
)
from robustkd.attacks.image.engine.low_frequency import low_frequency_noise
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch
from robustkd.scoring.distances import distance, per_sample

if TYPE_CHECKING:
    from torch import Tensor

_REACH = (1.0, 1.25, 1.6, 2.0)  # shares of the distance at which the normal is expected to have met the boundary
_TOLERANCE = 1e-3  # of a binary search, as a share of the distance


class GeoDAParams(DecisionParams):
    frequencies: float = Field(
        0.5, gt=0, le=1, description="share of each side's frequencies, the lowest, that directions are made of"
    )
    sigma: float = Field(0.02, gt=0, description="how far to look, as a share of the distance from the clean image")
    steps: int | None = Field(None, ge=1, description="estimates of the normal; default: one for each 250 queries, 3 at least")
    growth: float = Field(0.6, gt=0, lt=1, description="eta: each estimate has eta^(-2/3) times the queries of the one before")


class GeoDA(DecisionAttack):
    """GeoDA, which needs decisions alone."""

    Params = GeoDAParams
    source = "Rahmati et al. 2020, arXiv:2003.06468"

    def search(self, decisions: Decisions, rows: Tensor, rng: SampleRng) -> None:
        """Algorithm 2; what is left of the queries in the end goes to further estimates like the last one."""
        rows, x = boundary_points(decisions, rows, rng.fork("start"), _TOLERANCE)
        t = 0
        while True:
            keep = decisions.left[rows] > 0
            rows, x = rows[keep], x[keep]
            if not len(rows):
                return
            clean = decisions.clean[rows]
            far = decisions.length(x - clean)
            look = self.params.sigma * distance(x - clean, "l2")

            def probe(draws: SampleRng, look: Tensor = look, like: Tensor = x) -> Tensor:
                return per_sample(look, like) * unit(low_frequency_noise(draws, like, self.params.frequencies), "l2")

            v = unit(mean_direction(decisions, x, rows, self._probes(t), probe, rng.fork(t)), decisions.norm)
            t += 1
            waiting = torch.arange(len(rows), device=rows.device)
            for share in _REACH:
                tried = (clean[waiting] + per_sample(share * far[waiting], x) * v[waiting]).clamp(*decisions.bounds)
                hit = decisions(tried, rows[waiting])
                x[waiting[hit]] = tried[hit]
                waiting = waiting[~hit & (decisions.left[rows[waiting]] > 0)]
                if not len(waiting):
                    break
            x = onto_boundary(decisions, x, rows, _TOLERANCE)

    def _probes(self, t: int) -> int:
        """The queries of estimate ``t``: their sum over all steps is ``queries``, but for what the binary searches take."""
        p = self.params
        steps = p.steps or max(3, round(p.queries / 250))
        ratio = p.growth ** (-2 / 3)
        first = p.queries * (ratio - 1) / (ratio**steps - 1)
        return max(1, math.ceil(first * ratio ** min(t, steps - 1)))
