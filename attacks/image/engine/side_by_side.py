"""Several attempts on one sample at once: one towards each of its likeliest wrong classes.

A device that is half empty because few samples still stand is filled this way; and since each sample's attempts are
compared with each other alone, a result still depends on nothing but the sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from robustkd.attacks.image.engine.ascent import Found, Search, StepRule, ascend
from robustkd.attacks.image.engine.losses import targeted
from robustkd.attacks.image.engine.objective import bound
from robustkd.attacks.image.engine.oracle import Oracle
from robustkd.contracts import Batch
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Lanes:
    """Attempts on some samples of a search, T each.

    Attributes:
        rows: (S,) the samples.
        goals: (S, T) the classes that are aimed at.
        x: (S, T, *shape) where each attempt is.
        value: (S, T) its objective there.
        broken: (S, T) whether it is adversarial.
    """

    rows: Tensor
    goals: Tensor
    x: Tensor
    value: Tensor
    broken: Tensor

    @classmethod
    def at(cls, rows: Tensor, goals: Tensor, start: Tensor) -> Lanes:
        """All attempts at one point of each sample, ``start`` (S, *shape)."""
        x = start.unsqueeze(1).expand(-1, goals.shape[1], *start.shape[1:])
        value = torch.full(goals.shape, -torch.inf, dtype=start.dtype, device=start.device)
        return cls(rows, goals, x, value, torch.zeros_like(goals, dtype=torch.bool))

    def select(self, keep: Tensor) -> Lanes:
        """Only the samples in the (S,) mask ``keep``."""
        return Lanes(self.rows[keep], self.goals[keep], self.x[keep], self.value[keep], self.broken[keep])

    def best(self, count: int) -> Lanes:
        """Each sample's ``count`` most promising attempts."""
        order = (self.value + self.broken * torch.finfo(self.value.dtype).max).sort(dim=1, descending=True, stable=True).indices
        lanes = order[:, :count]
        at = torch.arange(len(self.rows), device=lanes.device).unsqueeze(1)
        return Lanes(self.rows, self.goals[at, lanes], self.x[at, lanes], self.value[at, lanes], self.broken[at, lanes])

    def found(self) -> Found:
        """Each sample's most promising attempt."""
        top = self.best(1)
        return Found(top.x[:, 0], top.value[:, 0], top.broken[:, 0])


def pursue(search: Search, batch: Batch, lanes: Lanes, rule: StepRule, steps: int) -> Lanes:
    """Take every attempt ``steps`` further: at most ``steps + 1`` forward and ``steps`` backward passes each.

    The samples are taken in parts, so that no more attempts are in memory at once than the batch has samples.
    """
    width = lanes.goals.shape[1]
    x, value, broken = lanes.x.clone(), lanes.value.clone(), lanes.broken.clone()
    for part in torch.arange(len(lanes.rows), device=lanes.rows.device).split(max(1, len(batch) // width)):
        kin = lanes.rows[part].repeat_interleave(width)
        oracle = Oracle(search.oracle.target, batch.select(kin), search.oracle.precision)
        found = ascend(
            oracle,
            torch.arange(len(kin), device=kin.device),
            search.ball.select(kin),
            lanes.x[part].flatten(0, 1),
            objective=bound(targeted("margin"), lanes.goals[part].flatten()),
            rule=rule,
            steps=steps,
            kin=kin,
        )
        search.oracle.forwards.index_add_(0, kin, oracle.forwards)
        search.oracle.backwards.index_add_(0, kin, oracle.backwards)
        x[part], value[part] = found.x.unflatten(0, (-1, width)), found.value.unflatten(0, (-1, width))
        broken[part] = found.broken.unflatten(0, (-1, width))
    return Lanes(lanes.rows, lanes.goals, x, value, broken)
