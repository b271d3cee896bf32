"""SurFree: along circles through the clean image and the boundary, in random planes.

    u = (x_b - x) / d,   d = ||x_b - x||;   v a random direction, at right angles to u and to the last ones
    z(a) = x + d cos(a) (cos(a) u + sin(a) v)
    look at z(a) and z(-a); where one is adversarial, search for the largest such a, and x_b = z(a)

All z(a) lie on the circle of which x and x_b are opposite ends, and ||z(a) - x|| = d cos(a): no gradient is estimated, so each
query may already be an improvement.

Good in l2 with few queries, hundreds to a few thousands; with very many ``hopskipjump`` may overtake it.

Source: Maho, Furon, Le Merrer: SurFree: a fast surrogate-free black-box attack (CVPR 2021), algorithm 1. Ours: the search for the
largest angle, by doubling and halving.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from robustkd.attacks.image.engine.decisions import DecisionAttack, DecisionParams, Decisions, boundary_points, unit
from robustkd.attacks.image.engine.low_frequency import low_frequency_noise
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch
from robustkd.scoring.distances import per_sample

if TYPE_CHECKING:
    from torch import Tensor

_STEEPEST = 0.49 * math.pi
_TOLERANCE = 0.01  # of the first binary search, as a share of the distance


class SurFreeParams(DecisionParams):
    norm: Literal["l2"] | None = Field(None, description="what is minimised; default: the threat's norm")
    frequencies: float = Field(
        0.5, gt=0, le=1, description="share of each side's frequencies, the lowest, that directions are made of"
    )
    orthogonal: int = Field(100, ge=0, description="how many former directions a new one is at right angles to")
    angle: float = Field(30.0, gt=0, lt=90, description="the first angle that is tried, in degrees")
    decay: float = Field(0.98, gt=0, lt=1, description="by how much the angle shrinks where neither side is adversarial")
    halvings: int = Field(4, ge=0, description="of the interval in which the largest angle is searched for")


class SurFree(DecisionAttack):
    """SurFree, which needs decisions alone."""

    Params = SurFreeParams
    norms = ("l2",)
    source = "Maho et al. 2021, arXiv:2011.12807"

    def search(self, decisions: Decisions, rows: Tensor, rng: SampleRng) -> None:
        """Run algorithm 1 of the paper."""
        p = self.params
        rows, x = boundary_points(decisions, rows, rng.fork("start"), _TOLERANCE)
        angle = x.new_full((len(rows),), math.radians(p.angle))
        former = x.new_zeros((len(rows), p.orthogonal, math.prod(x.shape[1:])))
        t = 0
        while len(rows):
            circle = Circle.through(decisions, rows, x, self._direction(rng.fork(t).select(rows), x, former))
            if p.orthogonal:
                former[:, t % p.orthogonal] = circle.v.flatten(1)
            t += 1
            sign = torch.zeros_like(angle)
            for side in (1.0, -1.0):
                some = ((sign == 0) & (decisions.left[rows] > 0)).nonzero().squeeze(1)
                hit = circle.adversarial(side * angle[some], some)
                sign[some[hit]] = side
            hit = sign != 0
            x = torch.where(per_sample(hit, x), circle.at(sign * self._widest(circle, sign, angle)), x)
            angle = torch.where(hit, angle / p.decay, angle * p.decay).clamp_max(_STEEPEST)
            keep = decisions.left[rows] > 0
            if not bool(keep.all()):
                rows, x, angle, former = rows[keep], x[keep], angle[keep], former[keep]

    def _direction(self, rng: SampleRng, x: Tensor, former: Tensor) -> Tensor:
        """(A, *shape) random directions at right angles to the ``former`` ones."""
        v = low_frequency_noise(rng, x, self.params.frequencies).flatten(1)
        return (v - (former.transpose(1, 2) @ (former @ v.unsqueeze(2))).squeeze(2)).view_as(x)

    def _widest(self, circle: Circle, sign: Tensor, angle: Tensor) -> Tensor:
        """(A,) the largest angles that are found adversarial, from ``angle`` on, where ``sign`` is not 0."""
        best, beyond = angle.clone(), torch.full_like(angle, _STEEPEST)
        growing = (sign != 0).nonzero().squeeze(1)
        while len(growing):
            tried = (2 * best[growing]).clamp_max(_STEEPEST)
            hit = circle.adversarial(sign[growing] * tried, growing)
            best[growing[hit]], beyond[growing[~hit]] = tried[hit], tried[~hit]
            growing = growing[hit & (tried < _STEEPEST) & circle.going(growing)]
        everyone = torch.arange(len(sign), device=sign.device)
        for _ in range(self.params.halvings):
            some = everyone[(sign != 0) & (beyond > best) & circle.going(everyone)]
            middle = (best[some] + beyond[some]) / 2
            hit = circle.adversarial(sign[some] * middle, some)
            best[some], beyond[some] = torch.where(hit, middle, best[some]), torch.where(hit, beyond[some], middle)
        return best


@dataclass(frozen=True)
class Circle:
    """The circles of which the clean images and the boundary points ``clean + far u`` are opposite ends, in the planes of u and v."""

    decisions: Decisions
    rows: Tensor
    clean: Tensor
    far: Tensor
    u: Tensor
    v: Tensor

    @classmethod
    def through(cls, decisions: Decisions, rows: Tensor, x: Tensor, towards: Tensor) -> Circle:
        """The circles through (A, *shape) boundary points ``x``; the plane of each holds the direction ``towards``."""
        clean = decisions.clean[rows]
        u = unit(x - clean, "l2")
        v = unit(towards - per_sample((towards * u).flatten(1).sum(1), u) * u, "l2")
        return cls(decisions, rows, clean, decisions.length(x - clean), u, v)

    def at(self, angle: Tensor, some: Tensor | slice = slice(None)) -> Tensor:
        """(S, *shape) the points at (S,) angles from the line to the boundary point, of the samples at ``some`` positions."""
        cos, sin = per_sample(angle.cos(), self.u), per_sample(angle.sin(), self.u)
        z = self.clean[some] + per_sample(self.far[some], self.u) * cos * (cos * self.u[some] + sin * self.v[some])
        return z.clamp(*self.decisions.bounds)

    def adversarial(self, angle: Tensor, some: Tensor) -> Tensor:
        """(S,) bool, of these points: one query each."""
        return self.decisions(self.at(angle, some), self.rows[some])

    def going(self, some: Tensor) -> Tensor:
        """(S,) bool, which have queries left."""
        return self.decisions.left[self.rows[some]] > 0
