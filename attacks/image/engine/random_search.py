"""Random search: of many proposals the best point so far is kept. The loop exists once; attacks differ in what they propose."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from typing_extensions import override

from robustkd.attacks.image.engine.ascent import AttackState, Search, SearchResult, fixed_budget, maximize, no_gradient
from robustkd.attacks.image.engine.ball import Ball
from robustkd.attacks.image.engine.objective import for_batch
from robustkd.attacks.image.engine.trend import EarlyStopByTrend
from robustkd.contracts import Attack, AttackResult, Batch, Target, ThreatModel
from robustkd.contracts.random import SampleRng

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Proposals(ABC):
    """The points that a random search looks at.

    Attributes:
        rng: of each sample.
        queries: how many are planned.
        first: how much the first ones change, as a share.
    """

    rng: SampleRng
    queries: int
    first: float

    @abstractmethod
    def start(self, ball: Ball, rows: Tensor) -> Tensor:
        """(A, *shape) the first points."""

    @abstractmethod
    def step(self, state: AttackState, t: int) -> Tensor:
        """(A, *shape) the next proposals."""


class RandomSearchAttack(Attack):
    """A random search that maximizes the margin; targeted, -CE. Its parameters have ``queries``, ``restarts`` and ``give_up``."""

    goals = ("untargeted", "targeted")
    gradients = False
    loss_family = "margin"  # when untargeted

    @abstractmethod
    def proposals(self, ball: Ball, rng: SampleRng) -> Proposals:
        """What the search looks at in a restart."""

    @override
    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """Takes at most ``restarts * queries`` forward passes a sample."""
        p = self.params
        objective = for_batch("margin" if batch.goals is None else "ce", batch)
        look = p.give_up and batch.goals is None  # the cross entropy of a goal does not say how far away the boundary is

        def attempt(search: Search, rows: Tensor, ball: Ball, restart: int) -> SearchResult:
            proposals = self.proposals(ball, rng.fork(restart))
            return maximize(
                search.oracle,
                rows,
                ball,
                proposals.start(ball, rows),
                objective=objective,
                update=proposals,
                steps=p.queries - 1,
                estimator=no_gradient,
                early_stop=EarlyStopByTrend(objective(search.clean, search.everybody), p.queries) if look else None,
            )

        return fixed_budget(target, batch, threat, attempt, restarts=p.restarts)
