"""HopSkipJump: walk along the boundary, with its normal estimated from decisions.

    x_0 an adversarial input, taken to the boundary by binary search
    v   = mean_b (phi(x_t + delta u_b) - mean phi) u_b,   phi = 1 where adversarial, else -1
    x'  = x_t + xi * steepest(v),   xi = ||x_t - x|| / sqrt(t), halved until x' is adversarial
    x_t+1 = x' taken to the boundary again: in l2 along the segment to x, in linf by cutting the perturbation

Good on targets that give classes alone, in l2 above all. It needs thousands of queries, and a boundary that is the same each
time it is asked.

Source: Chen, Jordan, Wainwright: HopSkipJumpAttack: a query-efficient decision-based attack (IEEE S&P 2020), algorithm 2. Ours:
the starting points, a least tolerance of
the binary search, with which goes how far is looked (in single precision a finer one is rounding), and a last step outwards.
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
    dimensions,
    mean_direction,
    onto_boundary,
    unit,
)
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch
from robustkd.scoring.distances import per_sample

if TYPE_CHECKING:
    from torch import Tensor

_HALVINGS = 15  # of the step along the normal
_FINEST = 1e-4  # share of the distance: below, single precision decides


class HopSkipJumpParams(DecisionParams):
    """Parameters of ``hopskipjump``; the paper's defaults."""

    first_probes: int = Field(100, ge=1, description="directions of the first estimate; the t-th has sqrt(t) times as many")
    gamma: float = Field(1.0, gt=0, description="how far to look from the boundary, and how exactly it is searched for")


class HopSkipJump(DecisionAttack):
    """HopSkipJump, which needs decisions alone."""

    Params = HopSkipJumpParams
    source = "Chen et al. 2020, arXiv:1904.02144"

    def search(self, decisions: Decisions, rows: Tensor, rng: SampleRng) -> None:
        """Run algorithm 2 of the paper."""
        p, norm = self.params, decisions.norm
        d = dimensions(decisions.clean)
        theta = max(p.gamma / (d * math.sqrt(d) if norm == "l2" else d * d), _FINEST)
        low, high = decisions.bounds
        rows, x = boundary_points(decisions, rows, rng.fork("start"), theta)
        t = 0
        while len(going := decisions.going(rows)):
            t += 1
            x, rows = x[torch.isin(rows, going)], going
            far = decisions.length(x - decisions.clean[rows])
            look = (
                0.1 * torch.as_tensor(high - low).max()
                if t == 1
                else per_sample(far * theta * (math.sqrt(d) if norm == "l2" else d), x)
            )

            def probe(draws: SampleRng, look: Tensor = look, like: Tensor = x) -> Tensor:
                shape, dtype = like.shape[1:], like.dtype
                u = draws.normal(shape, dtype) if norm == "l2" else draws.uniform(shape, -1.0, 1.0, dtype)
                return look * unit(u, "l2")

            v = unit(mean_direction(decisions, x, rows, int(p.first_probes * math.sqrt(t)), probe, rng.fork(t)), norm)
            step = far / math.sqrt(t)
            landed, waiting = x.clone(), torch.arange(len(rows), device=rows.device)
            for _ in range(_HALVINGS):
                tried = (x[waiting] + per_sample(step[waiting], x) * v[waiting]).clamp(*decisions.bounds)
                outside = decisions(tried, rows[waiting])
                landed[waiting[outside]] = tried[outside]
                waiting = waiting[~outside & (decisions.left[rows[waiting]] > 0)]
                if not len(waiting):
                    break
                step[waiting] /= 2
            x = onto_boundary(decisions, landed, rows, theta)
