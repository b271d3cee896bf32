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

    The state of a sample is in its memory: ``c``, its bounds ``low`` and ``high``, ``age`` (steps since the search for
    this c began), ``tried`` (values of c so far), ``succeeded`` (this c has given an adversarial example), ``lowest`` (the
    lowest objective at a look), ``stalled`` (looks in a row at which it had not fallen), ``no_progress`` and ``best_before``
    (tries without progress, and the distance before them).

    Attributes:
        steps: for each c, at most.
        values: how many values of c are tried, at most.
        abort_early: end the search for one c once its objective stalls, and all of it once no c helps any more.
        looks: how many looks in a row must find the objective no lower than the lowest before. With momentum it rises now and
            then.
    """

    steps: int
    values: int
    abort_early: bool
    looks: int = 1

    @property
    def passes(self) -> int:
        """The largest number of passes, for all c together."""
        return self.values * (self.steps + 1)

    def begin(self, state: MinNormState, first: Tensor) -> None:
        """Initialise the memory; ``first``: (A,) the first c of each sample."""
        zero, never, count = torch.zeros_like(state.best), torch.full_like(state.best, torch.inf), torch.zeros_like(state.rows)
        state.memory.update(c=first.clamp_max(_LARGEST), low=zero, high=never, lowest=never, best_before=never)
        state.memory.update(age=count, tried=count, no_progress=count, stalled=count, succeeded=torch.zeros_like(state.done))

    def ended(self, state: MinNormState, objective: Tensor) -> Tensor:
        """(A,) bool: the search for this c ends at this point. For these samples the next c is set, and the age is 0 again.

        Args:
            state: evaluated at ``state.x``.
            objective: (A,) the penalised size there.
        """
        m = state.memory
        look = m["age"] % max(1, self.steps // 10) == 0
        falls = objective <= _STALLED * m["lowest"]
        m["stalled"] = torch.where(look, torch.where(falls, 0, m["stalled"] + 1), m["stalled"])
        ended = (self.abort_early & (m["stalled"] == self.looks)) | (m["age"] == self.steps)
        m["stalled"] = torch.where(ended, 0, m["stalled"])
        m["succeeded"] = m["succeeded"] | state.adversarial
        m["lowest"] = torch.where(ended, torch.inf, torch.where(look, objective.minimum(m["lowest"]), m["lowest"]))
        m["age"] = torch.where(ended, 0, m["age"] + 1)
        if bool(ended.any()):
            self._next_constant(state, ended)
        return ended

    def _next_constant(self, state: MinNormState, ended: Tensor) -> None:
        m = state.memory
        c, succeeded = m["c"], m["succeeded"]
        low = torch.where(succeeded, m["low"], c.maximum(m["low"]))
        high = torch.where(succeeded, c.minimum(m["high"]), m["high"])
        lowered = torch.where(low > 0, (low + high) / 2, high / _FACTOR)
        next_c = torch.where(high.isfinite(), lowered, (c * _FACTOR).clamp_max(_LARGEST))
        closer = (state.best < _STALLED * m["best_before"]) | state.best.isinf()
        updates = {
            "low": low,
            "high": high,
            "c": next_c,
            "tried": m["tried"] + 1,
            "succeeded": torch.zeros_like(succeeded),
            "no_progress": torch.where(closer, 0, m["no_progress"] + 1),
            "best_before": state.best,
        }
        for name, value in updates.items():
            m[name] = torch.where(ended, value, m[name])
        state.done = state.done | (m["tried"] == self.values)
        if self.abort_early:
            state.done = state.done | (m["no_progress"] == _PATIENCE)
