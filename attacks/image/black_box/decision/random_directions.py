"""Random directions: the control of attacks by decisions.

    u random of length 1 (l2), or of random signs (linf)
    where x + r u is adversarial, r the shortest distance so far: r is searched for anew along u

It has the same queries and the same binary search, and learns nothing. What an attack by decisions finds beyond it, it owes to
its idea.

Source: none; it is the baseline that the papers on attacks by decisions improve on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustkd.attacks.image.engine.decisions import DecisionAttack, Decisions, boundary_points, onto_boundary, unit
from robustkd.contracts.random import SampleRng
from robustkd.scoring.distances import per_sample

if TYPE_CHECKING:
    from torch import Tensor

_TOLERANCE = 1e-3


class RandomDirections(DecisionAttack):
    """A search in random directions, which needs decisions alone."""

    source = "Ours, a control"

    def search(self, decisions: Decisions, rows: Tensor, rng: SampleRng) -> None:
        """Ask in one direction after the other, none of which depends on an answer."""
        rows, _ = boundary_points(decisions, rows, rng.fork("start"), _TOLERANCE)
        t = 0
        while len(rows := decisions.going(rows)):
            clean = decisions.clean[rows]
            u = unit(rng.fork(t).select(rows).normal(clean.shape[1:], clean.dtype), decisions.norm)
            t += 1
            x = (clean + per_sample(decisions.nearest.norm[rows], u) * u).clamp(*decisions.bounds)
            nearer = decisions(x, rows)
            onto_boundary(decisions, x[nearer], rows[nearer], _TOLERANCE)
