"""The conclusion of AutoAttack for a few per cent of its passes.

AutoAttack spends most of its passes on samples that nothing will break: 5,000 queries and 2,000 gradients each. Here every
sample gets a cheap look from each side, and more only where that look says that it may pay:

    1  climb     APGD on the margin, 20 steps from the clean image; from random points for as long as that gains ground
    2  sweep     not too far from the boundary: all wrong classes side by side, a few steps towards each
    3  press     near the boundary: longer towards the three classes that came closest in the sweep
    4  polish    next to the boundary: small steps from the best point so far
    5  retry     next to the boundary: from a random point, towards the likeliest classes
    6  compare   Square, 100 queries from its own start
    7  probe     Square from the best point so far, for as long as its pace may still carry it over the boundary
    8  doubt     AutoAttack itself where the comparison says that gradients mislead

"Near" is measured by what is left of the clean margin, which is free of the scale of the logits. Steps 1 to 5 settle a
sample whose gradients can be trusted; there Square gets nowhere, and is given up after 100 queries. Where 100 blind queries
come as near as all gradients did, a sample is doubted, and gets AutoAttack's APGD at a fifth of its length. Where besides the
gradient foretells neither at the clean image nor at a random point what a small step brings (it is zero, saturated, or of
another function), the sample gets all of AutoAttack as it is. A sample's course depends on its own margins alone.

How many samples stand after ``standard`` and after ``adaptive``, and the share of the passes (seed 0, on samples that no threshold
was chosen on):

    MLP on digits, 100 samples, linf .06, l2 .35, l1 .9         62 / 62, 60 / 60, 64 / 64    4 to 5 %, also with logits x 1000
    its input in 8 levels, budgets x 1.8                        20 / 20, 20 / 20, 47 / 47    46 to 79 %
    its gradients those of another network, 60 samples          25 / 24, 27 / 27, 33 / 33    47 to 68 %
    MLP of k-winners-take-all, 60 samples                       7 / 8, 4 / 6, 3 / 14         18 to 56 %
    CNN trained with PGD, Fashion-MNIST, linf .1, 500           308 / 307                    5 %

So where the network jumps, as k-winners-take-all does, ``adaptive`` falls behind: use ``standard``.

The ideas: most samples need little and a margin loss finds most (Gowal et al. 2019, arXiv:1910.09338); start from the best
point so far and give up on hopeless samples (A3: Liu et al. 2022, arXiv:2203.05154, which gives up by comparing samples with
each other); order attacks by yield (AutoAttack itself); check gradients before relying on them (Pintor et al. 2022,
arXiv:2106.09947). The thresholds were set on an MNIST network trained with PGD, whose gradients mislead, a plain ResNet-20
and a CNN trained with PGD on CIFAR-10.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from robustkd.attacks.image.black_box.square import square_rule
from robustkd.attacks.image.engine.ascent import Climbers, Found, GiveUp, Search, StepRule, ascend, no_slope
from robustkd.attacks.image.engine.ball import Ball
from robustkd.attacks.image.engine.cascade import cascade
from robustkd.attacks.image.engine.objective import for_batch
from robustkd.attacks.image.engine.oracle import frozen
from robustkd.attacks.image.engine.side_by_side import Lanes, pursue
from robustkd.attacks.image.gradient.apgd import AdaptiveStep, SparseStep, climb, wrong_classes
from robustkd.contracts import Attack, AttackResult, Batch, Target, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch
from robustkd.scoring.distances import per_sample

if TYPE_CHECKING:
    from torch import Tensor

_CLIMB, _SWEEP, _PRESS, _POLISH = 0.2, 0.04, 0.3, 0.3  # lengths of the stages in multiples of ``steps``
_RETRIES = ((0.1, 0.5), (0.03, 1.0))  # (share of the clean margin that is left at most, length)
_CLOSEST = 3  # classes that are pressed, and tried again
_FAR, _NEAR, _NEXT = 0.6, 0.3, 0.1  # shares of the clean margin that are left
_GENTLE = 0.5  # first step of a polish in multiples of eps; APGD's own is 2
_AGAIN = 5  # climbs from random points at most
_LOOK = 100  # queries of Square before its pace is first looked at
_WINDOW = 0.3  # share of the image in Square's first window, when it starts from the best point
_GAIN = 0.05  # of what is left: less is no gain
_BLIND = 0.999  # share of the clean margin: where more is left, the gradients found nothing
_SMALL, _FORETOLD = 0.1, 4.0  # a small step in multiples of eps, and by which factor its gain may differ from the foretold


@dataclass(frozen=True)
class Effort:
    """The parameters of ``autoattack`` that ``adaptive`` goes by: AutoAttack's steps, target classes and queries."""

    steps: int
    targets: int
    queries: int

    def part(self, length: float) -> int:
        """That many times ``steps``."""
        return max(1, round(length * self.steps))


Cascade = Sequence[tuple[str, Attack]]


def adaptive(
    target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng, effort: Effort, *, light: Cascade, standard: Cascade
) -> AttackResult:
    """Run the stages; ``light`` and ``standard`` are part and all of AutoAttack, for doubted samples. They share no loss."""
    with frozen(target.module):
        search = Search.begin(target, batch, threat)
        if threat.eps > 0:
            stages = Stages(search, batch, effort)
            settle(stages, rng)
            doubted = stages.compare(search.standing, rng.fork("compare"))
            misled = doubted
            for start in (batch.inputs, search.ball.random_point(rng.fork("foretold"))):
                misled = misled[~stages.foretold(misled, start)]
            stages.probe(without(search.standing, misled), rng.fork("probe"))
            for rows, attacks in ((without(doubted, misled), light), (misled, standard)):
                rows = rows[~search.success[rows]]
                if len(rows):
                    part = replace(batch.select(rows), logits=search.clean[rows])
                    found = cascade(attacks, target, part, threat, rng.select(rows))
                    search.oracle.forwards[rows] += found.forwards
                    search.oracle.backwards[rows] += found.backwards
                    x = torch.where(per_sample(found.success, part.inputs), found.adversarial, search.adversarial[rows])
                    search.record(rows, Found(x, search.value[rows], found.success))
        return replace(search.result(), loss=None)


def without(rows: Tensor, others: Tensor) -> Tensor:
    """Those of ``rows`` that are not among ``others``."""
    return rows[~torch.isin(rows, others)]


def settle(stages: Stages, rng: SampleRng) -> None:
    """Steps 1 to 5."""
    search, part = stages.search, stages.effort.part
    stages.climb(search.standing, search.ball.centre, part(_CLIMB))
    fickle = search.standing
    for number in range(_AGAIN):
        before = search.value.clone()
        stages.climb(fickle, search.ball.random_point(rng.fork(f"again/{number}")), part(_CLIMB))
        gained = search.value - before > _GAIN * before.abs()
        fickle = fickle[gained[fickle] & ~search.success[fickle]]
    swept = stages.pursue(stages.towards(stages.nearer(_FAR), search.ball.centre), part(_SWEEP))
    stages.pursue(swept.select(stages.left(swept.rows) < _NEAR).best(_CLOSEST), part(_PRESS))
    stages.polish(stages.nearer(_NEXT), part(_POLISH))
    for share, length in _RETRIES:
        start = search.ball.random_point(rng.fork(f"retry/{length}"))
        stages.pursue(stages.towards(stages.nearer(share), start, _CLOSEST), part(length))


class Stages:
    """What the stages share: the margin is what all of them climb, so that what is left of it can be compared."""

    def __init__(self, search: Search, batch: Batch, effort: Effort) -> None:
        self.search = search
        self.batch = batch
        self.effort = effort
        self.margin = for_batch("margin", batch)
        self.at_clean = self.margin(search.clean, torch.arange(len(batch), device=search.clean.device))
        ranked = wrong_classes(search.clean, batch.labels)[:, : effort.targets]
        self.classes = ranked if batch.goals is None else batch.goals.unsqueeze(1)

    def left(self, rows: Tensor) -> Tensor:
        """(S,) the share of the clean margin that is left: 1 at the clean image, 0 at the boundary."""
        value = self.search.value[rows]
        return value / self.at_clean[rows].clamp_max(-torch.finfo(value.dtype).tiny)

    def nearer(self, share: float) -> Tensor:
        """The standing rows with less than ``share`` left."""
        rows = self.search.standing
        return rows[self.left(rows) < share]

    def rule(self, steps: int) -> StepRule:
        """APGD's step, for an attempt that starts anew."""
        return SparseStep(steps) if self.search.ball.norm == "l1" else AdaptiveStep(steps)

    def climb(self, rows: Tensor, start: Tensor, steps: int) -> None:
        """APGD on the margin from ``start`` (B, *shape)."""
        ball = self.search.ball.select(rows)
        found = climb(self.search.oracle, rows, ball, start[rows], objective=self.margin, steps=steps)
        self.search.record(rows, found)

    def polish(self, rows: Tensor, steps: int) -> None:
        """APGD on the margin from the best points, with small steps."""
        search = self.search
        ball, start = search.ball.select(rows), search.adversarial[rows]
        rule = SparseStep(steps, first=False) if ball.norm == "l1" else AdaptiveStep(steps, _GENTLE)
        search.record(rows, ascend(search.oracle, rows, ball, start, objective=self.margin, rule=rule, steps=steps))

    def towards(self, rows: Tensor, start: Tensor, count: int | None = None) -> Lanes:
        """Attempts on the samples ``rows`` towards their ``count`` likeliest wrong classes, from ``start`` (B, *shape)."""
        return Lanes.at(rows, self.classes[rows, :count], start[rows])

    def pursue(self, lanes: Lanes, steps: int) -> Lanes:
        """APGD on every attempt; what comes back are those on samples that still stand."""
        lanes = pursue(self.search, self.batch, lanes, self.rule(steps), steps)
        self.search.record(lanes.rows, lanes.found())
        return lanes.select(~self.search.success[lanes.rows])

    def compare(self, rows: Tensor, rng: SampleRng) -> Tensor:
        """100 queries of Square from its own start; the rows where they came as near as the gradients, or those found nothing."""
        reached, blind = self.search.value[rows], self.left(rows) > _BLIND
        ball = self.search.ball.select(rows)
        rule = square_rule(ball, rng, self.effort.queries, 0.8)
        found = self._square(rows, ball, rule.start(ball, rows), rule, min(_LOOK, self.effort.queries))
        return rows[~found.broken & (blind | (found.value >= reached))]

    def foretold(self, rows: Tensor, start: Tensor) -> Tensor:
        """(S,) bool: along the gradient at ``start`` (B, *shape), a small step brings about what the gradient says."""
        if not len(rows):
            return torch.zeros_like(rows, dtype=torch.bool)
        oracle, ball = self.search.oracle, self.search.ball.select(rows)
        _, value, gradient = oracle.climb(start[rows], rows, self.margin)
        x = ball.project(start[rows] + per_sample(_SMALL * ball.eps, gradient) * ball.steepest(gradient))
        said = (gradient * (x - start[rows])).flatten(1).sum(1)
        ratio = (self.margin(oracle.logits(x, rows), rows) - value) / said
        return (ratio > 1 / _FORETOLD) & (ratio < _FORETOLD)

    def probe(self, rows: Tensor, rng: SampleRng) -> None:
        """Square from the best points, for half as many queries."""
        ball, start, queries = self.search.ball.select(rows), self.search.adversarial[rows], self.effort.queries // 2
        rule = square_rule(ball, rng, queries, _WINDOW)
        self._square(rows, ball, start, rule, queries, Pace(self.at_clean, queries))

    def _square(
        self, rows: Tensor, ball: Ball, start: Tensor, rule: StepRule, steps: int, give_up: GiveUp | None = None
    ) -> Found:
        search, objective = self.search, self.margin
        found = ascend(
            search.oracle, rows, ball, start, objective=objective, rule=rule, steps=steps, slope=no_slope, give_up=give_up
        )
        search.record(rows, found)
        return found


@dataclass(frozen=True)
class Pace:
    """When to give up a random search: its gains come in proportion to the logarithm of the queries.

    After 100, 200, 400, .. queries a sample goes on if, were every further doubling to bring what the last one brought, it
    would be over the boundary in time; or if it is next to the boundary and has gained anything at all.

    Attributes:
        at_clean: (B,) margins of the clean images.
        queries: all there are.
    """

    at_clean: Tensor
    queries: int

    def __call__(self, climbers: Climbers, t: int) -> Tensor:
        """(A,) bool."""
        c, m = climbers, climbers.memory
        if t == 0:
            m["at_start"] = m["at_mark"] = c.best_value
        doublings = math.log2(t / _LOOK) if t else -1.0
        if doublings < 0 or not doublings.is_integer():
            return torch.zeros_like(c.broken)
        in_time = (c.best_value - m["at_mark"]) * math.log2(self.queries / t) >= -c.best_value
        gained = c.best_value - m["at_start"] >= -_GAIN * m["at_start"]
        m["at_mark"] = c.best_value
        return ~(in_time | (gained & (c.best_value > _NEXT * self.at_clean[c.rows])))
