"""The conclusion of AutoAttack for a fifth to a half of its passes.

AutoAttack spends most of its passes on samples that nothing will break: 5,000 queries and 2,000 gradients each. Here every
sample gets a cheap look from each side, and more only where that look says that it may pay:

    1  margin_apgd      APGD on the margin, 20 steps from the clean image; from random points for as long as that gains
    2  every class      not too far from the boundary: all wrong classes side by side, a few steps towards each
    3  closest classes  near the boundary: longer towards the three classes that came closest in stage 2
    4  small_steps      next to the boundary: small steps from the best point so far
    5  retries          next to the boundary: towards the nearest classes, from a random point, then from learnt ones
    6  suspicious       Square, 100 queries from its own start: did it do as well as the gradients?
    7  random_search    Square from the best point so far, for as long as its trend may still carry it over the boundary
    8  AutoAttack       where stage 6 says that gradients mislead
    9  nearest classes  every sample: APGD on the targeted DLR, 50 steps towards each of the two nearest classes
   10  thorough         what still stands near the boundary: AutoAttack's APGD-T and Square as they are

"Near" is measured by the share of the clean margin that remains, which is free of the scale of the logits; which classes are
nearest, to first order (``target_classes``). Stages 1 to 5 are enough for most samples whose gradients can be trusted; there Square
gets nowhere, and is given up after 100 queries. A sample where 100 queries without gradients come as near as all gradients did gets
AutoAttack's APGD at a fifth of its length. Where besides the gradient predicts neither at the clean image nor at a random point what
a small step brings (it is zero, saturated, or of another function), the sample gets all of AutoAttack as it is. A sample's course
depends on its own margins alone.

A learnt start is reached by a few steps along a direction in the space of logits, as those of ODI are (Tashiro et al. 2020,
arXiv:2003.06878), but the direction is not all chance: half of it says how far the sample's own attempts of stage 2 got towards each
class. A3 learns directions from the successes on other samples; here no sample may depend on another one.

Where the network jumps, as k-winners-take-all does, ``adaptive`` falls behind ``standard``: use that. Figures for both are in
docs/benchmarks.md, "What adaptive leaves standing".

The ideas: most samples need little and a margin loss finds most (Gowal et al. 2019, arXiv:1910.09338); start from the best
point so far and give up on hopeless samples (A3: Liu et al. 2022, arXiv:2203.05154, which gives up by comparing samples with
each other); aim at the nearest classes in the linearised network (MALT: Melamed et al. 2024, arXiv:2407.02240); order attacks
by yield (AutoAttack itself); check gradients before relying on them (Pintor et al. 2022,
arXiv:2106.09947). The thresholds were set on an MNIST network trained with PGD, whose gradients mislead, a plain ResNet-20
and a CNN trained with PGD on CIFAR-10.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from robustkd.attacks.image.black_box.square import square_update
from robustkd.attacks.image.engine.ascent import (
    EarlyStop,
    Search,
    SearchResult,
    SteepestStep,
    Update,
    last_iterate,
    maximize,
    no_gradient,
)
from robustkd.attacks.image.engine.ball import Ball, StepSize
from robustkd.attacks.image.engine.cascade import cascade
from robustkd.attacks.image.engine.losses import scale_free_towards
from robustkd.attacks.image.engine.objective import bound, for_batch
from robustkd.attacks.image.engine.oracle import frozen
from robustkd.attacks.image.engine.target_classes import ClassOrder, target_classes
from robustkd.attacks.image.engine.targeted_runs import TargetedRuns, run_targeted
from robustkd.attacks.image.engine.trend import FIRST_LOOK, EarlyStopByTrend
from robustkd.attacks.image.gradient.apgd import AdaptiveStep, SparseStep, apgd_start, run_apgd
from robustkd.contracts import Attack, AttackResult, Batch, Target, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch
from robustkd.scoring.distances import per_sample

if TYPE_CHECKING:
    from torch import Tensor

# Lengths of stages 1 to 4 and 9, in multiples of the budget's steps: long where one run serves a sample, short where there is one
# for every class.
_MARGIN_APGD_LENGTH, _EVERY_CLASS_LENGTH, _CLOSEST_CLASSES_LENGTH, _SMALL_STEPS_LENGTH = 0.2, 0.04, 0.3, 0.3
_NEAREST_CLASSES_LENGTH = 0.5
# Stage 5: (a sample is retried while less than this share of its clean margin remains, length, learnt start). The nearer it is,
# the longer.
_RETRIES = ((0.1, 0.5, False), (0.1, 0.5, True), (0.03, 1.0, True))
# Which samples are worth stages 2, 3, 4 and 10: those with less than this share of their clean margin left.
_EVERY_CLASS_BELOW, _CLOSEST_CLASSES_BELOW, _SMALL_STEPS_BELOW, _THOROUGH_BELOW = 0.6, 0.3, 0.1, 0.15
_NEAREST_CLASSES = 2
_CLOSEST_CLASSES = 3  # the class that breaks a sample is nearly always among those that came closest
_TO_LEARNT_START, _LEARNT_STEP = 5, 0.5  # steps, and their size in multiples of eps
_SMALL_FIRST_STEP = 0.5  # in multiples of eps: APGD's own 2 would leave the neighbourhood of the best point
_RANDOM_STARTS = 5  # at most: a sample whose margin still depends on the start after these is left to later stages
_FIRST_WINDOW = 0.3  # share of the image in Square's first window from the best point; its own 0.8 would undo that point
_GAIN = 0.05  # of the remaining margin: a smaller one is not worth more steps
_NO_PROGRESS = 0.999  # share of the clean margin: where more remains, the gradients found nothing
_PROBE_STEP = 0.1  # in multiples of eps: small enough for a linear prediction where the loss is smooth
_PREDICTION_FACTOR = 4.0  # a useful gradient predicts the gain of that step up to this factor


@dataclass(frozen=True)
class Budgets:
    """The parameters of ``autoattack`` that ``adaptive`` goes by: AutoAttack's steps, target classes, their order and queries."""

    steps: int
    targets: int
    queries: int
    order: ClassOrder

    def part(self, length: float) -> int:
        """``length`` times ``steps``, rounded, at least 1."""
        return max(1, round(length * self.steps))


Cascade = Sequence[tuple[str, Attack]]


def adaptive(
    target: Target,
    batch: Batch,
    threat: ThreatModel,
    rng: SampleRng,
    budgets: Budgets,
    *,
    light: Cascade,
    standard: Cascade,
    thorough: Cascade,
) -> AttackResult:
    """Run the stages; ``light`` and ``standard`` are part and all of AutoAttack, for stage 8, ``thorough`` is stage 10. The result has no
    common loss.
    """
    with frozen(target.module):
        search = Search.begin(target, batch, threat)
        if threat.eps > 0:
            stages = Stages(search, batch, budgets)
            stages_1_to_5(stages, rng)
            suspicious = stages.suspicious(search.standing, rng.fork("compare"))
            misled = suspicious
            for start in (batch.inputs, search.ball.random_point(rng.fork("foretold"))):
                misled = misled[~stages.gradient_is_predictive(misled, start)]
            stages.random_search(without(search.standing, misled), rng.fork("probe"))

            def run(rows: Tensor, attacks: Cascade) -> None:
                rows = rows[~search.success[rows]]
                if len(rows):
                    part = replace(batch.select(rows), logits=search.answers[rows])
                    result = cascade(attacks, target, part, threat, rng.select(rows))
                    search.oracle.forwards[rows] += result.forwards
                    search.oracle.backwards[rows] += result.backwards
                    x = torch.where(per_sample(result.success, part.inputs), result.adversarial, search.adversarial[rows])
                    search.record(rows, SearchResult(x, search.value[rows], result.success))

            run(without(suspicious, misled), light)
            run(misled, standard)
            nearest = budgets.part(_NEAREST_CLASSES_LENGTH)
            for number in range(min(_NEAREST_CLASSES, stages.classes.shape[1])):
                stages.one_class(without(search.standing, misled), number, nearest, rng.fork(f"nearest/{number}"))
            if thorough:
                run(without(stages.below(_THOROUGH_BELOW), misled), thorough)
        return replace(search.result(), loss=None)


def without(rows: Tensor, others: Tensor) -> Tensor:
    """Those of ``rows`` that are not among ``others``."""
    return rows[~torch.isin(rows, others)]


def stages_1_to_5(stages: Stages, rng: SampleRng) -> None:
    """Run the stages that follow gradients, each on the samples that still stand."""
    search, part = stages.search, stages.budgets.part
    stages.margin_apgd(search.standing, search.ball.centre, part(_MARGIN_APGD_LENGTH))
    unstable = search.standing
    for number in range(_RANDOM_STARTS):
        before = search.value.clone()
        stages.margin_apgd(unstable, apgd_start(search.ball, rng.fork(f"again/{number}")), part(_MARGIN_APGD_LENGTH))
        gained = search.value - before > _GAIN * before.abs()
        unstable = unstable[gained[unstable] & ~search.success[unstable]]
    stages.rank_classes(search.standing)
    every_class = stages.targeted(stages.below(_EVERY_CLASS_BELOW), search.ball.centre)
    every_class = stages.run_targeted(every_class, part(_EVERY_CLASS_LENGTH))
    towards = stages.towards_each_class(every_class)
    near = every_class.select(stages.remaining(every_class.rows) < _CLOSEST_CLASSES_BELOW)
    stages.run_targeted(near.best(_CLOSEST_CLASSES), part(_CLOSEST_CLASSES_LENGTH))
    stages.small_steps(stages.below(_SMALL_STEPS_BELOW), part(_SMALL_STEPS_LENGTH))
    for number, (share, length, learnt) in enumerate(_RETRIES):
        rows, draws = stages.below(share), rng.fork(f"retry/{number}")
        start = search.ball.random_point(draws)
        if learnt:
            start[rows] = stages.learnt_start(rows, start[rows], towards[rows], draws.fork("direction"))
        stages.run_targeted(stages.targeted(rows, start, _CLOSEST_CLASSES), part(length))


class Stages:
    """The building blocks of the stages. All of them maximize the margin, so that what remains of it can be compared."""

    def __init__(self, search: Search, batch: Batch, budgets: Budgets) -> None:
        self.search = search
        self.batch = batch
        self.budgets = budgets
        self.margin = for_batch("margin", batch)
        self.clean_margin = self.margin(search.clean, torch.arange(len(batch), device=search.clean.device))
        self.classes = batch.labels.unsqueeze(1) if batch.goals is None else batch.goals.unsqueeze(1)

    def rank_classes(self, rows: Tensor) -> None:
        """Find out which classes to aim at: of the nearest boundaries, or those of the highest logits, or the goal if there is one."""
        if self.batch.goals is None:
            search, order = self.search, self.budgets.order
            ranked = target_classes(search.oracle, self.batch.inputs, search.clean, rows, norm=search.ball.norm, order=order)
            self.classes = ranked[:, : self.budgets.targets]

    def remaining(self, rows: Tensor) -> Tensor:
        """(S,) the share of the clean margin that remains: 1 at the clean image, 0 at the boundary."""
        value = self.search.value[rows]
        return value / self.clean_margin[rows].clamp_max(-torch.finfo(value.dtype).tiny)

    def below(self, share: float) -> Tensor:
        """(S,) the standing rows of which less than ``share`` of the clean margin remains."""
        rows = self.search.standing
        return rows[self.remaining(rows) < share]

    def margin_apgd(self, rows: Tensor, start: Tensor, steps: int) -> None:
        """APGD on the margin from ``start`` (B, *shape)."""
        ball = self.search.ball.select(rows)
        self.search.record(rows, run_apgd(self.search.oracle, rows, ball, start[rows], objective=self.margin, steps=steps))

    def one_class(self, rows: Tensor, number: int, steps: int, rng: SampleRng) -> None:
        """APGD on the targeted DLR from random points, towards the class that is ``number`` in the order, counted from 0."""
        oracle, ball = self.search.oracle, self.search.ball.select(rows)
        start, towards = apgd_start(ball, rng.select(rows)), bound(scale_free_towards, self.classes[:, number])
        found = run_apgd(oracle, rows, ball, start, objective=towards, steps=steps)
        if len(rows):
            margin = self.margin(oracle.logits(found.x, rows), rows)
            self.search.record(rows, replace(found, value=margin.to(found.value.dtype)))

    def towards_each_class(self, runs: TargetedRuns) -> Tensor:
        """(B, K) from -1 to 1, how near ``runs`` came to each class, beside the others of the same sample; 0 where nothing is known."""
        known = torch.zeros_like(self.search.clean)
        low, high = runs.value.amin(1, keepdim=True), runs.value.amax(1, keepdim=True)
        nearness = 2 * (runs.value - low) / (high - low).clamp_min(torch.finfo(low.dtype).tiny) - 1
        known[runs.rows] = known[runs.rows].scatter(1, runs.goals, nearness.to(known.dtype))
        return known.scatter(1, self.batch.labels.unsqueeze(1), -1.0)

    def learnt_start(self, rows: Tensor, start: Tensor, towards: Tensor, rng: SampleRng) -> Tensor:
        """(S, *shape) where steps from ``start`` lead along a direction of the logits, half of it ``towards`` (S, K), half chance."""
        direction = torch.zeros_like(self.search.clean)
        direction[rows] = towards + rng.select(rows).uniform(towards.shape[1:], -1, 1, dtype=towards.dtype)
        update = SteepestStep(StepSize(share=_LEARNT_STEP))
        return last_iterate(
            self.search.oracle,
            rows,
            self.search.ball.select(rows),
            start,
            objective=lambda logits, of: (logits * direction[of]).sum(1),
            update=update,
            steps=_TO_LEARNT_START if len(rows) else 0,
        )

    def small_steps(self, rows: Tensor, steps: int) -> None:
        """APGD on the margin from the best points, with small steps."""
        search = self.search
        ball, start = search.ball.select(rows), search.adversarial[rows]
        update = SparseStep(steps, first=False) if ball.norm == "l1" else AdaptiveStep(steps, _SMALL_FIRST_STEP)
        search.record(rows, maximize(search.oracle, rows, ball, start, objective=self.margin, update=update, steps=steps))

    def targeted(self, rows: Tensor, start: Tensor, count: int | None = None) -> TargetedRuns:
        """Attempts on the samples ``rows`` towards their ``count`` likeliest wrong classes, from ``start`` (B, *shape)."""
        return TargetedRuns.starting_at(rows, self.classes[rows, :count], start[rows])

    def run_targeted(self, runs: TargetedRuns, steps: int) -> TargetedRuns:
        """APGD on every attempt; those on samples that still stand are returned."""
        update: Update = SparseStep(steps) if self.search.ball.norm == "l1" else AdaptiveStep(steps)
        runs = run_targeted(self.search, self.batch, runs, update, steps)
        self.search.record(runs.rows, runs.result())
        return runs.select(~self.search.success[runs.rows])

    def suspicious(self, rows: Tensor, rng: SampleRng) -> Tensor:
        """The rows where 100 queries of Square, from its own start, came as near as the gradients, or the gradients found nothing."""
        reached, no_progress = self.search.value[rows], self.remaining(rows) > _NO_PROGRESS
        ball = self.search.ball.select(rows)
        update = square_update(ball, rng, self.budgets.queries, 0.8)
        result = self._square(rows, ball, update.start(ball, rows), update, min(FIRST_LOOK, self.budgets.queries))
        return rows[~result.broken & (no_progress | (result.value >= reached))]

    def gradient_is_predictive(self, rows: Tensor, start: Tensor) -> Tensor:
        """(S,) bool: along the gradient at ``start`` (B, *shape), a small step gains about what the gradient predicts."""
        if not len(rows):
            return torch.zeros_like(rows, dtype=torch.bool)
        oracle, ball = self.search.oracle, self.search.ball.select(rows)
        _, value, gradient = oracle.value_and_grad(start[rows], rows, self.margin)
        x = ball.project(start[rows] + per_sample(_PROBE_STEP * ball.eps, gradient) * ball.steepest(gradient, start[rows]))
        predicted = (gradient * (x - start[rows])).flatten(1).sum(1)
        ratio = (self.margin(oracle.logits(x, rows), rows) - value) / predicted
        return (ratio > 1 / _PREDICTION_FACTOR) & (ratio < _PREDICTION_FACTOR)

    def random_search(self, rows: Tensor, rng: SampleRng) -> None:
        """Square from the best points, for half as many queries."""
        ball, start, queries = self.search.ball.select(rows), self.search.adversarial[rows], self.budgets.queries // 2
        update = square_update(ball, rng, queries, _FIRST_WINDOW)
        self._square(rows, ball, start, update, queries, EarlyStopByTrend(self.clean_margin, queries))

    def _square(
        self, rows: Tensor, ball: Ball, start: Tensor, update: Update, steps: int, early_stop: EarlyStop | None = None
    ) -> SearchResult:
        result = maximize(
            self.search.oracle,
            rows,
            ball,
            start,
            objective=self.margin,
            update=update,
            steps=steps,
            estimator=no_gradient,
            early_stop=early_stop,
        )
        self.search.record(rows, result)
        return result
