"""The constant c of a penalty method, searched for by bisection, each sample at its own pace.

    minimise   size(d) + c * max(kappa - margin(x + d), 0)

is solved for one c after the other. A c that gives an adversarial example is too large or just right, one that does not is
too small. A sample whose search for one c has ended goes on to its next c while others are still at theirs.

Source: Carlini & Wagner: Towards evaluating the robustness of neural networks (S&P 2017), section VI-A.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from robustkd.attacks.image.engine.minimum_norm.nearest import MinNormState
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

_LARGEST = 1e10  # as in the authors' code: beyond it, c is not raised further
_FACTOR = 10.0  # by which c grows until it is large enough, and falls until it is too small (authors' code)
_STALLED = 0.99  # of its lowest value: an objective above that does not fall; looked at ten times in each search
_PATIENCE = 2  # values of c that bring a sample no closer, before its remaining ones are given up


@dataclass(frozen=True)
class ConstantSearch:
    """Which c is tried next, and when the search for one c has ended.

    What belongs to a sample is kept in its memory: ``c``, its bounds ``low`` and ``high``, ``age`` (steps since the search for
    this c began), ``tried`` (values of c so far), ``worked`` (this c has given an adversarial example), ``seen`` (the
    lowest objective at a look), ``still`` (looks in a row at which it had not fallen), ``idle`` and ``before`` (tries without
    progress, and the distance before them).

    Attributes:
        steps: at most, for each c.
        values: of c, at most.
        abort_early: end the search for one c once its objective stalls, and all of it once no c helps any more.
        looks: in a row that must find it no lower than the lowest seen. A search with momentum rises now and then.
    """

    steps: int
    values: int
    abort_early: bool
    looks: int = 1

    @property
    def passes(self) -> int:
        """At most so many, for all c together."""
        return self.values * (self.steps + 1)

    def begin(self, state: MinNormState, first: Tensor) -> None:
        """Fill the memory; ``first``: (A,) the first c of each sample."""
        zero, never, count = torch.zeros_like(state.best), torch.full_like(state.best, torch.inf), torch.zeros_like(state.rows)
        state.memory.update(c=first.clamp_max(_LARGEST), low=zero, high=never, seen=never, before=never)
        state.memory.update(age=count, tried=count, idle=count, still=count, worked=torch.zeros_like(state.done))

    def ended(self, state: MinNormState, objective: Tensor) -> Tensor:
        """(A,) bool: the search for c has ended at this point. The next c is then set already, and the age 0 again.

        Args:
            state: evaluated at ``state.x``.
            objective: (A,) the penalised size there.
        """
        m = state.memory
        look = m["age"] % max(1, self.steps // 10) == 0
        falls = objective <= _STALLED * m["seen"]
        m["still"] = torch.where(look, torch.where(falls, 0, m["still"] + 1), m["still"])
        ended = (self.abort_early & (m["still"] == self.looks)) | (m["age"] == self.steps)
        m["still"] = torch.where(ended, 0, m["still"])
        m["worked"] = m["worked"] | state.adversarial
        m["seen"] = torch.where(ended, torch.inf, torch.where(look, objective.minimum(m["seen"]), m["seen"]))
        m["age"] = torch.where(ended, 0, m["age"] + 1)
        if bool(ended.any()):
            self._conclude(state, ended)
        return ended

    def _conclude(self, state: MinNormState, ended: Tensor) -> None:
        m = state.memory
        c, worked = m["c"], m["worked"]
        low = torch.where(worked, m["low"], c.maximum(m["low"]))
        high = torch.where(worked, c.minimum(m["high"]), m["high"])
        lowered = torch.where(low > 0, (low + high) / 2, high / _FACTOR)
        following = torch.where(high.isfinite(), lowered, (c * _FACTOR).clamp_max(_LARGEST))
        closer = (state.best < _STALLED * m["before"]) | state.best.isinf()
        conclusions = {
            "low": low,
            "high": high,
            "c": following,
            "tried": m["tried"] + 1,
            "worked": torch.zeros_like(worked),
            "idle": torch.where(closer, 0, m["idle"] + 1),
            "before": state.best,
        }
        for name, value in conclusions.items():
            m[name] = torch.where(ended, value, m[name])
        state.done = state.done | (m["tried"] == self.values)
        if self.abort_early:
            state.done = state.done | (m["idle"] == _PATIENCE)
