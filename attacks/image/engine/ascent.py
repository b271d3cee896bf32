"""The loop of every iterative fixed-budget attack.

An attack supplies an objective to maximize, a ball to stay in, a start, an update (how to move), and, where the plain gradient
will not do, a gradient estimator. The loop does the rest, and does no more work than a sample needs:

- the forward pass that gives the next gradient also tells whether the sample is broken already (an estimator may cost many
  passes, so there the sample is looked at first);
- a broken sample leaves the batch, so nothing is spent on it any more;
- the best point of each sample is kept: its first adversarial one, else the one with the highest objective;
- every sample is on its own: nothing is summed, stopped or scheduled over the batch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

from robustkd.attacks.image.engine.ball import Ball, StepSize
from robustkd.attacks.image.engine.cuda_graphs import replayed
from robustkd.attacks.image.engine.oracle import Objective, ObjectiveWithGradient, Oracle, TransformOracle, finite, frozen
from robustkd.attacks.image.engine.perceptual_ball import PerceptualBall
from robustkd.contracts import AttackResult, Batch, PerceptualBudget, Target, ThreatModel, UsageError
from robustkd.contracts.image_changes import PARAMETERS, TransformBudget
from robustkd.lazy import torch
from robustkd.targets.features import with_perceptual_features

if TYPE_CHECKING:
    from torch import Tensor

Recorder: TypeAlias = "Callable[[int, Tensor, Tensor, Tensor], None]"
"""``recorder(step, rows, x, values)`` is told every iterate that was evaluated."""

_WAITING = 2**18
"""How many numbers the points have together that wait for their objective, at most."""


@dataclass
class AttackState:
    """The active set: the samples still under attack; each tensor has one row a sample.

    Attributes:
        rows: (A,) their positions in the batch.
        x: (A, *shape) current points.
        gradient, value: of the objective at ``x``.
        best_x, best_value, broken: the best point so far.
        improved: whether the current point became the best.
        memory: the update's own tensors (momentum, step sizes, ..).
        best_is_shared: whether ``best_x`` may be a tensor that somebody else holds, so that nothing is written into it.
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
    best_is_shared: bool = True

    def select(self, keep: Tensor) -> AttackState:
        """Only the rows in the mask ``keep``."""
        return AttackState(
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
            best_is_shared=False,
        )


class Update(Protocol):
    """How to move. State that belongs to a sample lives in ``state.memory``."""

    def step(self, state: AttackState, t: int) -> Tensor:
        """(A, *shape) the next points, before they are projected; ``t`` counts from 0."""


class GradientStep(ABC):
    """An update that looks at points and gradients alone, neither at values nor at the best points.

    So the loop need not know these in each step: it computes the values of several points at once, in as many kernels as those of one,
    which on a small network saves a large part of a pass.
    """

    @abstractmethod
    def step(self, state: AttackState, t: int) -> Tensor:
        """See ``Update``."""


EarlyStop: TypeAlias = "Callable[[AttackState, int], Tensor | None]"
"""``early_stop(state, t)``: (A,) bool, the samples that are not worth another step; None where all are."""


class GradientEstimator(Protocol):
    """Replaces the gradient at the point by a smoothed, averaged, estimated or looked-ahead one."""

    def __call__(self, oracle: Oracle, state: AttackState, objective: Objective, t: int) -> Tensor:
        """(A, *shape) the estimate at step ``t``; every pass that it needs goes through ``oracle``."""


def gradient_at_point(oracle: Oracle, state: AttackState, objective: Objective, t: int) -> Tensor:
    """The plain gradient, as an estimator: what estimators that look at other points are built on."""
    return oracle.value_and_grad(state.x, state.rows, objective)[2]


def no_gradient(oracle: Oracle, state: AttackState, objective: Objective, t: int) -> Tensor:
    """The estimator of an update that needs values alone (random search): it makes no backward pass."""
    return state.gradient


@dataclass(frozen=True)
class SteepestStep(GradientStep):
    """x + size * the steepest direction of the norm: the step of FGSM, BIM and PGD."""

    size: StepSize

    def step(self, state: AttackState, t: int) -> Tensor:
        """(A, *shape) one step along the steepest direction of ``state.gradient``."""
        size, direction = self.size.within(state.ball), state.ball.steepest(state.gradient, state.x)
        return torch.add(state.x, direction, alpha=size) if isinstance(size, float) else state.x.addcmul(size, direction)


@dataclass(frozen=True)
class SearchResult:
    """Where the loop ended, one row for each sample it was started on.

    Attributes:
        x: (A, *shape) the best points.
        value: (A,) their objective.
        broken: (A,) bool, whether they are adversarial.
    """

    x: Tensor
    value: Tensor
    broken: Tensor


def maximize(
    oracle: Oracle,
    rows: Tensor,
    ball: Ball,
    start: Tensor,
    *,
    objective: Objective,
    update: Update,
    steps: int,
    estimator: GradientEstimator | None = None,
    stop_when_broken: bool = True,
    group: Tensor | None = None,
    early_stop: EarlyStop | None = None,
    recorder: Recorder | None = None,
) -> SearchResult:
    """Maximize ``objective`` from ``start`` in ``steps`` steps: at most ``steps + 1`` forward and ``steps`` backward passes.

    With an ``estimator``, ``steps + 1`` forward passes and whatever the estimator asks for at the first ``steps`` points.

    Args:
        oracle: queries and counts.
        rows: (A,) which samples of the oracle's batch are attacked; ``ball`` and ``start`` have these rows.
        ball: the constraint.
        start: (A, *shape) inside the ball.
        objective: what is maximized.
        update: how to move.
        steps: how often.
        estimator: replaces the gradient at the point.
        stop_when_broken: let broken samples leave; otherwise their highest adversarial point is sought.
        group: (A,) rows of equal number are attempts on one sample, side by side: where one succeeds, all leave.
        early_stop: lets samples leave that are not broken.
        recorder: is told every iterate.
    """
    lowest = torch.full((len(rows),), -torch.inf, dtype=start.dtype, device=start.device)
    none = torch.zeros_like(rows, dtype=torch.bool)
    if not len(rows):
        return SearchResult(start, lowest, none)
    finished, active = _Finished(), torch.arange(len(rows), device=rows.device)  # the rows of the result that `state` still has
    no_slope = start.new_zeros(()).expand_as(start)  # takes no memory
    state = AttackState(rows, ball, start, no_slope, lowest, start, lowest, none, none)
    del start  # it may be as large as all that is needed besides
    in_time = not stop_when_broken or oracle.precision != "full" or bool(estimator or early_stop or recorder)
    waiting = None if in_time else _Waiting.of(objective, update)
    for t in range(steps + 1):
        logits, value = _look(oracle, state, objective, waiting, with_gradient=t < steps and estimator is None)
        broken = oracle.adversarial_among(logits, state.rows)
        if value is not None or broken is not None:
            if waiting is not None:
                waiting.settle(state, broken if value is None else None)
            if value is not None:
                # A half-precision network's logits are no reason to compare in half precision.
                state.value = value.to(lowest.dtype)
                if recorder is not None:
                    recorder(t, state.rows, state.x, state.value)
                _keep_best(state, state.x, broken, stop_when_broken)
            leaving = broken if stop_when_broken else None
            if group is not None and leaving is not None:
                leaving = torch.isin(group[active], group[active[leaving]])
            leaving = _or_stopped(leaving, state, t, early_stop)
            if t == steps or (leaving is not None and bool(leaving.all())):
                break
            if leaving is not None and bool(leaving.any()):
                finished.take(state, active, leaving)
                state, active = state.select(~leaving), active[~leaving]
        if estimator is not None:
            state.gradient = estimator(oracle, state, objective, t)
        state.gradient = state.ball.along(state.gradient)
        state.x = state.ball.project(update.step(state, t))
    return finished.result(state, active)


def _look(
    oracle: Oracle, state: AttackState, objective: Objective, waiting: _Waiting | None, *, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Logits at ``state.x``, and the objective's values, or None where the point waits for them; ``state.gradient`` if it is asked for."""
    if not with_gradient:
        logits = oracle.logits(state.x, state.rows)
        return logits, objective(logits, state.rows)
    state.gradient = state.x  # which is there anyway: the former gradient is not kept beside what the network needs
    if waiting is None or not waiting.has_room_for(state.x):
        logits, value, state.gradient = oracle.value_and_grad(state.x, state.rows, objective)
        return logits, value
    logits, state.gradient = oracle.logits_and_grad(state.x, state.rows, waiting.objective)
    waiting.points.append((state.x, logits))
    return logits, None


def _or_stopped(leaving: Tensor | None, state: AttackState, t: int, early_stop: EarlyStop | None) -> Tensor | None:
    """(A,) bool, ``leaving`` (None: nobody) and those that ``early_stop`` lets leave."""
    stopped = None if early_stop is None else early_stop(state, t)
    if leaving is None or stopped is None:
        return stopped if leaving is None else leaving
    return leaving | stopped


@dataclass(frozen=True)
class _Waiting:
    """The points of one active set whose values are computed later, all at once.

    Attributes:
        points: each with its logits; none of them but the last may be adversarial.
    """

    objective: ObjectiveWithGradient
    points: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @classmethod
    def of(cls, objective: Objective, update: Update) -> _Waiting | None:
        """None where the update looks at values, or the gradient is taken through them."""
        return cls(objective) if isinstance(objective, ObjectiveWithGradient) and isinstance(update, GradientStep) else None

    def has_room_for(self, x: Tensor) -> bool:
        """Whether ``x`` may wait, too: no more are held than are small."""
        return (len(self.points) + 1) * x.numel() <= _WAITING

    def settle(self, state: AttackState, broken: Tensor | None) -> None:
        """Let the points be the best ones, one after the other, where they are; ``broken`` are those of the last one that are adversarial.

        Raises:
            TargetError, AttackError: logits are NaN or infinite.
        """
        if not self.points:
            return
        for x, logits in self.points:
            finite(logits, x)
        logits = torch.cat([logits for _, logits in self.points])
        values, _ = self.objective.value_and_grad(logits, state.rows.repeat(len(self.points)))
        each = values.to(state.best_value.dtype).split(len(state.rows))
        last = len(self.points) - 1
        for number, ((x, _), state.value) in enumerate(zip(self.points, each, strict=True)):
            _keep_best(state, x, broken if number == last else None, stop_when_broken=True)
        self.points.clear()


@dataclass
class _Finished:
    """The results of the samples that have left ``maximize``; nothing is allocated as long as none has."""

    left: SearchResult | None = None

    def take(self, state: AttackState, active: Tensor, leaving: Tensor) -> None:
        """Keep the best points of the rows in the mask ``leaving``; ``active`` are the rows of the result that ``state`` has."""
        if self.left is None:
            self.left = SearchResult(*(torch.empty_like(part) for part in (state.best_x, state.best_value, state.broken)))
        out = active[leaving]
        self.left.x[out] = state.best_x[leaving]
        self.left.value[out] = state.best_value[leaving]
        self.left.broken[out] = state.broken[leaving]

    def result(self, state: AttackState, active: Tensor) -> SearchResult:
        """The result of all, once those that ``state`` has leave as well."""
        if self.left is None:
            x = state.best_x.clone() if state.best_is_shared else state.best_x
            return SearchResult(x, state.best_value, state.broken)
        self.take(state, active, torch.ones_like(state.broken))
        return self.left


def _keep_best(state: AttackState, x: Tensor, broken: Tensor | None, stop_when_broken: bool) -> None:
    """Let ``x`` be the best point of the samples in ``broken`` (None: no sample), and where ``state.value`` is higher than before."""
    higher = state.value > state.best_value
    if stop_when_broken:  # none of them was before
        if broken is None:
            state.improved = higher
        else:
            state.improved, state.broken = higher | broken, broken
    elif broken is None:
        state.improved = higher & ~state.broken
    else:
        state.improved, state.broken = torch.where(broken == state.broken, higher, broken), state.broken | broken
    rows = state.improved.nonzero()
    if len(rows) == len(higher):
        state.best_x, state.best_value, state.best_is_shared = x, state.value, True
    elif len(rows):
        if state.best_is_shared:
            state.best_x, state.best_is_shared = state.best_x.clone(), False
        rows = rows.squeeze(1)
        state.best_x.index_copy_(0, rows, x.index_select(0, rows))  # `where` would go through all of them
        state.best_value = torch.where(state.improved, state.value, state.best_value)


def last_iterate(
    oracle: Oracle,
    rows: Tensor,
    ball: Ball,
    start: Tensor,
    *,
    objective: Objective,
    update: Update,
    steps: int,
    estimator: GradientEstimator = gradient_at_point,
) -> Tensor:
    """(A, *shape) the point after exactly ``steps`` steps, never judged: the inner maximization of adversarial training."""
    empty = torch.zeros(len(rows), dtype=start.dtype, device=start.device)
    state = AttackState(rows, ball, start, start, empty, start, empty, empty.bool(), empty.bool())
    for t in range(steps):
        state.gradient = ball.along(estimator(oracle, state, objective, t))
        state.x = ball.project(update.step(state, t))
    return state.x


@dataclass
class Search:
    """The state of a fixed-budget attack between its attempts: which samples still stand, and the best point of each.

    Attributes:
        oracle: queries and counts.
        ball: the constraint of every sample.
        clean: (B, K) logits of the clean inputs.
        answers: (B, K) the target's outputs on them, which are the logits unless it rejects inputs (``Oracle.classes``).
        adversarial: (B, *shape) the best points: images, or under a budget of transforms their parameters.
        value: (B,) their objective (larger is more adversarial), -inf for a sample that no attempt has seen.
        success: (B,) bool.
        is_shared: whether ``adversarial`` may be a tensor that somebody else holds, so that nothing is written into it.
    """

    oracle: Oracle
    ball: Ball
    clean: Tensor
    answers: Tensor
    adversarial: Tensor
    value: Tensor
    success: Tensor
    is_shared: bool = True

    @classmethod
    def begin(cls, target: Target, batch: Batch, threat: ThreatModel) -> Search:
        """Look at the clean inputs, unless the batch brings their logits. To be used inside ``frozen(target.module)``.

        Under a budget of transforms the search is for their parameters, in a linf ball around 0. Under a perceptual one the ball
        knows the features, at the cost of one more forward pass.

        A sample that is adversarial as it comes (misclassified, or already at its goal) is a success, unchanged.
        """
        if threat.where is not None and threat.where.placing == "given" and batch.movable is None:
            raise UsageError(f"it is not known where {threat.where} lies", fix="give the attack batch.placed(threat, seed)")
        budget, inputs, rows = threat.budget, batch.inputs, torch.arange(len(batch), device=batch.inputs.device)
        if isinstance(budget, TransformBudget):
            oracle: Oracle = TransformOracle(target, batch, budget, target.precision)
            points = inputs.new_zeros((len(batch), *budget.shape(tuple(inputs.shape[1:]))))
            ball = Ball.around(points, batch.budget(threat), "linf", (-math.inf, math.inf))
        elif isinstance(perceptual := with_perceptual_features(threat, target).budget, PerceptualBudget):
            oracle, points = Oracle(target, batch, target.precision), inputs
            ball = PerceptualBall.of(inputs, batch.budget(threat), target.bounds, perceptual, oracle.passes)
        else:
            oracle, points = Oracle(target, batch, target.precision, replayed(target, inputs)), inputs
            ball = Ball.around(inputs, batch.budget(threat), threat.norm, target.bounds, batch.movable)
        answers = oracle.answers(points, rows) if batch.logits is None else batch.logits
        clean = oracle.classes(answers, rows)
        value = torch.full((len(batch),), -torch.inf, dtype=inputs.dtype, device=inputs.device)
        return cls(oracle, ball, clean, answers, points, value, oracle.is_adversarial(clean, rows))

    @property
    def everybody(self) -> Tensor:
        """(B,) the rows of all samples."""
        return torch.arange(len(self.success), device=self.success.device)

    @property
    def standing(self) -> Tensor:
        """(S,) rows of the samples that nothing has broken yet."""
        return (~self.success).nonzero().squeeze(1)

    def attempt(self, attempt: Attempt, number: int = 0) -> None:
        """Run one attempt on the samples that still stand; ``number`` seeds it."""
        rows = self.standing
        if len(rows):
            ball = self.ball if len(rows) == len(self.success) else self.ball.select(rows)
            self.record(rows, attempt(self, rows, ball, number))

    def record(self, rows: Tensor, result: SearchResult) -> None:
        """Keep the result of an attempt on ``rows`` (standing ones) where it broke the sample or raised its objective."""
        better = result.broken | (result.value > self.value[rows])
        improved = rows[better]
        if len(improved) == len(self.value) and bool((improved == self.everybody).all()):
            self.adversarial, self.is_shared = result.x, True
        elif len(improved):
            if self.is_shared:
                self.adversarial, self.is_shared = self.adversarial.clone(), False
            self.adversarial[improved] = result.x[better]
        self.value[improved] = result.value[better]
        self.success[rows] = result.broken

    def result(self) -> AttackResult:
        """The best points with their success, value and counts of passes, as the attack contract wants them."""
        images, extras = self.adversarial.clone() if self.is_shared else self.adversarial, {}
        if isinstance(self.oracle, TransformOracle):
            images, extras = self.oracle.images(self.adversarial, self.everybody), {PARAMETERS: self.adversarial}
        return AttackResult(images, self.success, self.oracle.forwards, self.oracle.backwards, self.value, extras)


Attempt: TypeAlias = "Callable[[Search, Tensor, Ball, int], SearchResult]"
"""``attempt(search, rows, ball, number)``: one attempt on the samples ``rows``, whose balls are ``ball``."""


def fixed_budget(target: Target, batch: Batch, threat: ThreatModel, attempt: Attempt, *, restarts: int = 1) -> AttackResult:
    """A fixed-budget attack made of attempts: each sees only the samples that every earlier one left standing."""
    with frozen(target.module):
        search = Search.begin(target, batch, threat)
        for number in range(restarts):
            search.attempt(attempt, number)
        return search.result()
