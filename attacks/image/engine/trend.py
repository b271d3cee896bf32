"""When a random search is not worth more queries."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from robustkd.attacks.image.engine.ascent import AttackState

if TYPE_CHECKING:
    from torch import Tensor

FIRST_LOOK = 100
"""The queries after which a trend is looked at first: fewer tell nothing."""
_GAIN = 0.05  # of the remaining margin: a smaller one is not worth more queries
_NEXT_TO = 0.1  # share of the clean margin: a sample with less is next to the boundary


@dataclass(frozen=True)
class EarlyStopByTrend:
    """When to give up a random search, whose gains come in proportion to the logarithm of the queries.

    After 100, 200, 400, .. queries a sample goes on if, were every further doubling to bring what the last one brought, it
    would be over the boundary in time; or if it is next to the boundary and has gained anything at all.

    Attributes:
        clean_margin: (B,) margins of the clean images.
        queries: all there are.
    """

    clean_margin: Tensor
    queries: int

    def __call__(self, state: AttackState, t: int) -> Tensor | None:
        """(A,) bool: the samples to give up after ``t`` queries; None where nobody looked."""
        best, m = state.best_value, state.memory
        if t == 0:
            m["at_start"] = m["at_last_look"] = best
        doublings = math.log2(t / FIRST_LOOK) if t else -1.0
        if doublings < 0 or not doublings.is_integer():
            return None
        in_time = (best - m["at_last_look"]) * math.log2(self.queries / t) >= -best
        gained = best - m["at_start"] >= -_GAIN * m["at_start"]
        m["at_last_look"] = best
        return ~(in_time | (gained & (best > _NEXT_TO * self.clean_margin[state.rows])))
