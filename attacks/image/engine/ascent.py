"""The loop of every iterative fixed-budget attack. It exists once, here.

An attack hands over the seams: an objective (what is climbed), a ball (where one may go), a start, a step rule (how to
move), and, where the plain gradient will not do, a slope (which way is up). The loop does the rest, and does no more work
than a sample needs:

- the forward pass that gives the next gradient also tells whether the sample is broken already (a slope of its own may cost
  many passes, so there the sample is looked at first);
- a broken sample leaves the batch, so nothing is spent on it any more;
- the best point of each sample is kept: its first adversarial one, else the one with the highest objective;
- every sample is on its own: nothing is summed, stopped or scheduled over the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

from robustkd.attacks.image.engine.ball import Ball, StepSize
from robustkd.attacks.image.engine.oracle import Objective, Oracle, frozen
from robustkd.contracts import AttackResult, Batch, Target, ThreatModel
from robustkd.lazy import torch
from robustkd.scoring.distances import per_sample

if TYPE_CHECKING:
    from torch import Tensor

Recorder: TypeAlias = "Callable[[int, Tensor, Tensor, Tensor], None]"
"""``recorder(step, rows, x, values)`` is told every iterate that was evaluated."""


@dataclass
class Climbers:
    """The samples still under attack; each tensor has one row a sample.

    Attributes:
        rows: (A,) their places in the batch.
        x: (A, *shape) current points.
        gradient, value: of the objective at ``x``.
        best_x, best_value, broken: the best point so far.
        improved: whether the current point became the best.
        memory: the step rule's own tensors (momentum, step sizes, ..).
    """

    rows: Tensor
    ball: Ball
    x: Tensor
    gradient: Tensor
    value: Tensor
    best_x: Tensor
    best_value: Tensor
    broken: Tensor
    improved: Tensor
    memory: dict[str, Tensor] = field(default_factory=dict)

    def select(self, keep: Tensor) -> Climbers:
        """Only the rows in the mask ``keep``."""
        return Climbers(
            self.rows[keep],
            self.ball.select(keep),
            self.x[keep],
            self.gradient[keep],
            self.value[keep],
            self.best_x[keep],
            self.best_value[keep],
            self.broken[keep],
            self.improved[keep],
            {name: tensor[keep] for name, tensor in self.memory.items()},
        )


class StepRule(Protocol):
    """How to move. State that belongs to a sample lives in ``climbers.memory``."""

    def step(self, climbers: Climbers, t: int) -> Tensor:
        """(A, *shape) the next points, before they are projected; ``t`` counts from 0."""


GiveUp: TypeAlias = "Callable[[Climbers, int], Tensor]"
"""``give_up(climbers, t)``: (A,) bool, the samples that are not worth another step."""


class Slope(Protocol):
    """Which way is up, where that is not the gradient at the point: a smoothed, averaged, estimated or looked-ahead one."""

    def __call__(self, oracle: Oracle, climbers: Climbers, objective: Objective, t: int) -> Tensor:
        """(A, *shape); asks ``oracle`` for the passes that it needs."""


def gradient_at_point(oracle: Oracle, climbers: Climbers, objective: Objective, t: int) -> Tensor:
    """The plain gradient: what a slope of slopes ends in."""
    return oracle.climb(climbers.x, climbers.rows, objective)[2]


def no_slope(oracle: Oracle, climbers: Climbers, objective: Objective, t: int) -> Tensor:
    """For a step rule that goes by values alone (random search): no backward pass."""
    return climbers.gradient


@dataclass(frozen=True)
class SteepestStep:
    """x + size * the steepest direction of the norm: the step of FGSM, BIM and PGD."""

    size: StepSize

    def step(self, climbers: Climbers, t: int) -> Tensor:
        """One step uphill."""
        return climbers.x + self.size.within(climbers.ball) * climbers.ball.steepest(climbers.gradient)


@dataclass(frozen=True)
class Found:
    """Where the loop ended, one row for each sample it was started on: best point, its value, whether adversarial."""

    x: Tensor
    value: Tensor
    broken: Tensor


def ascend(
    oracle: Oracle,
    rows: Tensor,
    ball: Ball,
    start: Tensor,
    *,
    objective: Objective,
    rule: StepRule,
    steps: int,
    slope: Slope | None = None,
    stop_when_broken: bool = True,
    kin: Tensor | None = None,
    give_up: GiveUp | None = None,
    recorder: Recorder | None = None,
) -> Found:
    """Climb ``objective`` from ``start`` for ``steps`` steps: at most ``steps + 1`` forward and ``steps`` backward passes.

    With a ``slope``, ``steps + 1`` forward passes and whatever the slope asks for at the first ``steps`` points.

    Args:
        oracle: queries and counts.
        rows: (A,) which samples of the oracle's batch are attacked; ``ball`` and ``start`` have these rows.
        ball: the constraint.
        start: (A, *shape) inside the ball.
        objective: what is climbed.
        rule: how to move.
        steps: how often.
        slope: replaces the gradient at the point.
        stop_when_broken: let broken samples leave; otherwise their highest adversarial point is sought.
        kin: (A,) rows of equal number are attempts on one sample, side by side: where one succeeds, all leave.
        give_up: lets samples leave that are not broken.
        recorder: is told every iterate.
    """
    lowest = torch.full((len(rows),), -torch.inf, dtype=start.dtype, device=start.device)
    none = torch.zeros_like(rows, dtype=torch.bool)
    whole = Found(start.clone(), lowest.clone(), none.clone())
    if not len(rows):
        return whole
    places = torch.arange(len(rows), device=rows.device)  # of the climbers among the rows of `whole`
    now = Climbers(rows, ball, start, torch.zeros_like(start), lowest, start, lowest, none, none)
    for t in range(steps + 1):
        if t < steps and slope is None:
            logits, value, now.gradient = oracle.climb(now.x, now.rows, objective)
        else:
            logits = oracle.logits(now.x, now.rows)
            value = objective(logits, now.rows)
        now.value = value.to(start.dtype)  # a half-precision network's logits are no reason to compare in half precision
        if recorder is not None:
            recorder(t, now.rows, now.x, now.value)
        _keep_best(now, oracle.is_adversarial(logits, now.rows))
        leaving = now.broken if stop_when_broken else torch.zeros_like(now.broken)
        if kin is not None:
            leaving = torch.isin(kin[places], kin[places[leaving]])
        if give_up is not None:
            leaving = leaving | give_up(now, t)
        if t == steps:
            leaving = torch.ones_like(now.broken)
        if bool(leaving.any()):
            out = places[leaving]
            whole.x[out], whole.value[out], whole.broken[out] = (
                now.best_x[leaving],
                now.best_value[leaving],
                now.broken[leaving],
            )
            now, places = now.select(~leaving), places[~leaving]
        if not len(places):
            break
        if slope is not None:
            now.gradient = slope(oracle, now, objective, t)
        now.x = now.ball.project(rule.step(now, t))
    return whole


def _keep_best(now: Climbers, broken: Tensor) -> None:
    now.improved = torch.where(broken == now.broken, now.value > now.best_value, broken)
    now.best_x = torch.where(per_sample(now.improved, now.x), now.x, now.best_x)
    now.best_value = torch.where(now.improved, now.value, now.best_value)
    now.broken = now.broken | broken


def climb_to_last(
    oracle: Oracle,
    rows: Tensor,
    ball: Ball,
    start: Tensor,
    *,
    objective: Objective,
    rule: StepRule,
    steps: int,
    slope: Slope = gradient_at_point,
) -> Tensor:
    """The inner maximisation of adversarial training: exactly ``steps`` slopes, and the last point, unjudged."""
    empty = torch.zeros(len(rows), dtype=start.dtype, device=start.device)
    now = Climbers(rows, ball, start, start, empty, start, empty, empty.bool(), empty.bool())
    for t in range(steps):
        now.gradient = slope(oracle, now, objective, t)
        now.x = ball.project(rule.step(now, t))
    return now.x


@dataclass
class Search:
    """A fixed-budget attack under way: which samples still stand, and the best point of each.

    Attributes:
        oracle: queries and counts.
        ball: the constraint of every sample.
        clean: (B, K) logits of the clean inputs.
        adversarial: (B, *shape) the best points.
        value: (B,) their objective (larger is more adversarial), -inf for a sample that no attempt has seen.
        success: (B,) bool.
    """

    oracle: Oracle
    ball: Ball
    clean: Tensor
    adversarial: Tensor
    value: Tensor
    success: Tensor

    @classmethod
    def begin(cls, target: Target, batch: Batch, threat: ThreatModel) -> Search:
        """Look at the clean inputs, unless the batch brings their logits. To be used inside ``frozen(target.module)``.

        A sample that is adversarial as it comes (misclassified, or already at its goal) is a success, unchanged.
        """
        oracle = Oracle(target, batch, target.precision)
        rows = torch.arange(len(batch), device=batch.inputs.device)
        clean = oracle.logits(batch.inputs, rows) if batch.logits is None else batch.logits
        ball = Ball.around(batch.inputs, batch.budget(threat), threat.norm, target.bounds)
        value = torch.full((len(batch),), -torch.inf, dtype=batch.inputs.dtype, device=batch.inputs.device)
        return cls(oracle, ball, clean, batch.inputs.clone(), value, oracle.is_adversarial(clean, rows))

    @property
    def standing(self) -> Tensor:
        """(S,) rows of the samples that nothing has broken yet."""
        return (~self.success).nonzero().squeeze(1)

    def attempt(self, run: Run, number: int = 0) -> None:
        """Let ``run`` have a go at the standing samples."""
        rows = self.standing
        if len(rows):
            self.record(rows, run(self, rows, self.ball.select(rows), number))

    def record(self, rows: Tensor, found: Found) -> None:
        """Keep what an attempt on ``rows`` (standing ones) found, where it broke the sample or came closer to it."""
        better = found.broken | (found.value > self.value[rows])
        kept = rows[better]
        self.adversarial[kept], self.value[kept] = found.x[better], found.value[better]
        self.success[rows] = found.broken

    def result(self) -> AttackResult:
        """As the contract wants it."""
        return AttackResult(self.adversarial, self.success, self.oracle.forwards, self.oracle.backwards, self.value)


Run: TypeAlias = "Callable[[Search, Tensor, Ball, int], Found]"
"""``run(search, rows, ball, attempt)``: one attempt on the samples ``rows``, whose balls are ``ball``."""


def fixed_budget(target: Target, batch: Batch, threat: ThreatModel, run: Run, *, restarts: int = 1) -> AttackResult:
    """A fixed-budget attack made of attempts: each sees only the samples that every earlier one left standing."""
    with frozen(target.module):
        search = Search.begin(target, batch, threat)
        for attempt in range(restarts):
            search.attempt(run, attempt)
        return search.result()
