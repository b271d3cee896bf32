"""The loop of every iterative fixed-budget attack. It exists once, here.

An attack hands over the seams: an objective (what is climbed), a ball (where one may go), a start, and a step rule (how to
move). The loop does the rest, and does no more work than a sample needs:

- the forward pass that gives the next gradient also tells whether the sample is broken already;
- a broken sample leaves the batch, so nothing is spent on it any more;
- the best point of each sample is kept: its first adversarial one, else the one with the highest objective;
- every sample is on its own: nothing is summed, stopped or scheduled over the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from robustkd.attacks.image.ball import Ball
from robustkd.attacks.oracle import Objective, Oracle, frozen
from robustkd.contracts import AttackResult, Batch, Target, ThreatModel

Recorder = Callable[[int, Tensor, Tensor, Tensor], None]
"""``recorder(step, rows, x, values)`` is told every iterate that was evaluated."""


@dataclass
class Climbers:
    """The samples still under attack; each tensor has one row a sample.

    Attributes:
        rows: (A,) their places in the batch.
        x: (A, *shape) current points.
        gradient, value: of the objective at ``x``.
        best_x, best_value, broken: the best point so far.
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
            {name: tensor[keep] for name, tensor in self.memory.items()},
        )


class StepRule(Protocol):
    """How to move. State that belongs to a sample lives in ``climbers.memory``."""

    def step(self, climbers: Climbers, t: int) -> Tensor:
        """(A, *shape) the next points, before they are projected; ``t`` counts from 0."""


@dataclass(frozen=True)
class SteepestStep:
    """x + size * the steepest direction of the norm: the step of FGSM, BIM and PGD."""

    size: float

    def step(self, climbers: Climbers, t: int) -> Tensor:
        """One step uphill."""
        return climbers.x + self.size * climbers.ball.steepest(climbers.gradient)


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
    stop_when_broken: bool = True,
    recorder: Recorder | None = None,
) -> Found:
    """Climb ``objective`` from ``start`` for ``steps`` steps: at most ``steps + 1`` forward and ``steps`` backward passes.

    Args:
        oracle: queries and counts.
        rows: (A,) which samples of the oracle's batch are attacked; ``ball`` and ``start`` have these rows.
        ball: the constraint.
        start: (A, *shape) inside the ball.
        objective: what is climbed.
        rule: how to move.
        steps: how often.
        stop_when_broken: let broken samples leave; otherwise their highest adversarial point is sought.
        recorder: is told every iterate.
    """
    lowest = torch.full((len(rows),), -torch.inf, dtype=start.dtype, device=start.device)
    whole = Found(start.clone(), lowest.clone(), torch.zeros_like(rows, dtype=torch.bool))
    places = torch.arange(len(rows), device=rows.device)  # of the climbers among the rows of `whole`
    now = Climbers(rows, ball, start, torch.zeros_like(start), lowest, start, lowest, whole.broken.clone())
    for t in range(steps + 1):
        if t < steps:
            logits, now.value, now.gradient = oracle.climb(now.x, now.rows, objective)
        else:
            logits = oracle.logits(now.x, now.rows)
            now.value = objective(logits, now.rows)
        if recorder is not None:
            recorder(t, now.rows, now.x, now.value)
        _keep_best(now, oracle.is_adversarial(logits, now.rows))
        leaving = now.broken if stop_when_broken else torch.zeros_like(now.broken)
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
        now.x = now.ball.project(rule.step(now, t))
    return whole


def _keep_best(now: Climbers, broken: Tensor) -> None:
    better = (broken & ~now.broken) | ((broken == now.broken) & (now.value > now.best_value))
    now.best_x = torch.where(better.view(-1, *([1] * (now.x.ndim - 1))), now.x, now.best_x)
    now.best_value = torch.where(better, now.value, now.best_value)
    now.broken = now.broken | broken


def climb_to_last(
    oracle: Oracle, rows: Tensor, ball: Ball, start: Tensor, *, objective: Objective, rule: StepRule, steps: int
) -> Tensor:
    """The inner maximisation of adversarial training: exactly ``steps`` passes each way, and the last point, unjudged."""
    empty = torch.zeros(len(rows), dtype=start.dtype, device=start.device)
    now = Climbers(rows, ball, start, start, empty, start, empty, empty.bool())
    for t in range(steps):
        _, now.value, now.gradient = oracle.climb(now.x, rows, objective)
        now.x = ball.project(rule.step(now, t))
    return now.x


Run = Callable[[Oracle, Tensor, Ball, int], Found]
"""``run(oracle, rows, ball, restart)``: one attempt on the samples ``rows``."""


def fixed_budget(target: Target, batch: Batch, threat: ThreatModel, run: Run, *, restarts: int = 1) -> AttackResult:
    """A fixed-budget attack made of attempts: each restart sees only the samples that every earlier one left standing.

    A sample that is adversarial as it comes (misclassified, or already at its goal) is returned unchanged.
    """
    with frozen(target.module):
        oracle = Oracle(target, batch)
        rows = torch.arange(len(batch), device=batch.inputs.device)
        logits = oracle.logits(batch.inputs, rows) if batch.logits is None else batch.logits
        success = oracle.is_adversarial(logits, rows)
        adversarial = batch.inputs.clone()
        loss = torch.full((len(batch),), -torch.inf, dtype=batch.inputs.dtype, device=batch.inputs.device)
        whole = Ball.around(batch.inputs, threat.eps, threat.norm, getattr(target, "bounds", (0.0, 1.0)))
        for restart in range(restarts):
            standing = rows[~success]
            if not len(standing):
                break
            found = run(oracle, standing, whole.select(standing), restart)
            better = found.broken | (found.value > loss[standing])
            kept = standing[better]
            adversarial[kept], loss[kept] = found.x[better], found.value[better]
            success[standing] = found.broken
    return AttackResult(adversarial, success, oracle.forwards, oracle.backwards, loss)
