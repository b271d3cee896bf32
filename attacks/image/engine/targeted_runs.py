"""Several attempts on one sample at once, one towards each of its likeliest wrong classes.

This fills a device that is half empty because few samples still stand. A sample's attempts are compared with each other alone,
so a result still depends on nothing but the sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from robustkd.attacks.image.engine.ascent import Search, SearchResult, Update, maximize
from robustkd.attacks.image.engine.losses import targeted
from robustkd.attacks.image.engine.objective import bound
from robustkd.attacks.image.engine.oracle import Oracle
from robustkd.contracts import Batch
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TargetedRuns:
    """Attempts on some samples of a search, T each.

    Attributes:
        rows: (S,) the samples.
        goals: (S, T) the classes to reach.
        x: (S, T, *shape) the best point of each attempt.
        value: (S, T) its objective.
        broken: (S, T) whether it is adversarial.
    """

    rows: Tensor
    goals: Tensor
    x: Tensor
    value: Tensor
    broken: Tensor

    @classmethod
    def starting_at(cls, rows: Tensor, goals: Tensor, start: Tensor) -> TargetedRuns:
        """Attempts that have not begun yet, all at one point of each sample, ``start`` (S, *shape)."""
        x = start.unsqueeze(1).expand(-1, goals.shape[1], *start.shape[1:])
        value = torch.full(goals.shape, -torch.inf, dtype=start.dtype, device=start.device)
        return cls(rows, goals, x, value, torch.zeros_like(goals, dtype=torch.bool))

    def select(self, keep: Tensor) -> TargetedRuns:
        """Only the samples in the (S,) mask ``keep``."""
        return TargetedRuns(self.rows[keep], self.goals[keep], self.x[keep], self.value[keep], self.broken[keep])

    def or_better(self, others: TargetedRuns) -> TargetedRuns:
        """The better of two attempts of the same samples towards the same classes."""
        better = torch.where(others.broken == self.broken, others.value > self.value, others.broken)
        x = torch.where(better.view(*better.shape, *[1] * (self.x.ndim - 2)), others.x, self.x)
        value = torch.where(better, others.value, self.value)
        return TargetedRuns(self.rows, self.goals, x, value, self.broken | others.broken)

    def best(self, count: int) -> TargetedRuns:
        """Each sample's ``count`` attempts of the highest objective; those that broke it come first."""
        order = (self.value + self.broken * torch.finfo(self.value.dtype).max).sort(dim=1, descending=True, stable=True).indices
        top = order[:, :count]
        each = torch.arange(len(self.rows), device=top.device).unsqueeze(1)
        return TargetedRuns(self.rows, self.goals[each, top], self.x[each, top], self.value[each, top], self.broken[each, top])

    def result(self) -> SearchResult:
        """The best attempt of each sample."""
        top = self.best(1)
        return SearchResult(top.x[:, 0], top.value[:, 0], top.broken[:, 0])


def run_targeted(search: Search, batch: Batch, runs: TargetedRuns, update: Update, steps: int) -> TargetedRuns:
    """Take every attempt ``steps`` further: at most ``steps + 1`` forward and ``steps`` backward passes each.

    The samples are taken in parts, so that no more attempts are in memory at once than the batch has samples.
    """
    width = runs.goals.shape[1]
    x, value, broken = runs.x.clone(), runs.value.clone(), runs.broken.clone()
    for part in torch.arange(len(runs.rows), device=runs.rows.device).split(max(1, len(batch) // width)):
        group = runs.rows[part].repeat_interleave(width)
        oracle = Oracle(search.oracle.target, batch.select(group), search.oracle.precision, search.oracle.outputs)
        result = maximize(
            oracle,
            torch.arange(len(group), device=group.device),
            search.ball.select(group),
            runs.x[part].flatten(0, 1),
            objective=bound(targeted("margin"), runs.goals[part].flatten()),
            update=update,
            steps=steps,
            group=group,
        )
        search.oracle.forwards.index_add_(0, group, oracle.forwards)
        search.oracle.backwards.index_add_(0, group, oracle.backwards)
        x[part], value[part] = result.x.unflatten(0, (-1, width)), result.value.unflatten(0, (-1, width))
        broken[part] = result.broken.unflatten(0, (-1, width))
    return TargetedRuns(runs.rows, runs.goals, x, value, broken)
