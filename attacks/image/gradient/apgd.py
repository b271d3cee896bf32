"""APGD: PGD that sets its own step size, by looking at whether the last steps paid.

    z       = project(x_k + size * steepest(grad f(x_k)))
    x_{k+1} = project(x_k + .75 (z - x_k) + .25 (x_k - x_{k-1}))              size starts at 2 eps

and at checkpoints, ever closer together, the size is halved and the search goes back to its best point where either fewer
than 75 % of the steps since the last checkpoint went up, or neither the size nor the best value has changed since.

Good where no step size is known: there is none to choose. ``apgd-ce`` stands still where the cross entropy saturates; the
DLR loss needs three classes, its targeted form four (below, the margin stands in); all of them need gradients that can be
trusted.

Source: Croce & Hein: Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks
(ICML 2020), algorithm 1 and section 3. For l1, Croce & Hein: Mind the box: l1-APGD for sparse adversarial attacks on image
classifiers (ICML 2021), algorithms 1 and 2 and section 4.2.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from typing_extensions import override

from robustkd.attacks.image.engine.ascent import AttackState, Search, SearchResult, fixed_budget, maximize
from robustkd.attacks.image.engine.ball import PROJECTION_REVISIONS, Ball
from robustkd.attacks.image.engine.losses import scale_free, scale_free_towards
from robustkd.attacks.image.engine.objective import bound, for_batch
from robustkd.attacks.image.engine.oracle import Objective, Oracle, frozen
from robustkd.attacks.image.engine.target_classes import CANDIDATES, ClassOrder, target_classes
from robustkd.contracts import Attack, AttackResult, Batch, Params, Target, ThreatModel
from robustkd.contracts.params import AddedLater
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch
from robustkd.scoring.distances import per_sample

if TYPE_CHECKING:
    from torch import Tensor

_MOMENTUM = 0.75  # alpha
_RISES_WANTED = 0.75  # rho
_WIDER = (3.0, 2.0)  # l1 (2021, section 4.2): multiples of eps; each takes 30 % of the steps, the ball itself the rest

START_REVISIONS: Mapping[str, int] = MappingProxyType({"l1": PROJECTION_REVISIONS["l1"] + 1})
"""The ``revisions`` of what starts at ``apgd_start``: those of the projection and one more. Before that, in l1, a start changed every
pixel by a little."""


def checkpoints(steps: int) -> dict[int, int]:
    """Each checkpoint w_j = ceil(p_j * steps), and the number of steps since the one before.

    p_0 = 0, p_1 = .22, p_{j+1} = p_j + max(p_j - p_{j-1} - .03, .06) (2020, section 3.2).
    """
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    marks = [math.ceil(round(share * steps, 9)) for share in shares]
    return {mark: mark - before for before, mark in pairwise(marks) if before < mark < steps}


@dataclass(frozen=True)
class AdaptiveStep:
    """The step of APGD in linf and l2, whose size is halved at checkpoints where the last steps did not pay.

    Attributes:
        steps: how many are planned; the checkpoints are placed accordingly.
        first: size of the first steps, in multiples of eps.
    """

    steps: int
    first: float = 2.0

    def step(self, state: AttackState, t: int) -> Tensor:
        """(A, *shape) the points x_{t+1}, before they are projected."""
        m = state.memory
        if t == 0:
            m["size"], m["previous"] = self.first * state.ball.eps, state.x
            m["best_gradient"], m["value"] = state.gradient, state.value
            m["rises"] = torch.zeros_like(state.rows)
            # Nothing to compare the first checkpoint with, so only the number of rises can halve the size there.
            m["halved"], m["best_then"] = torch.ones_like(state.broken), state.best_value
            return state.x + per_sample(m["size"], state.x) * state.ball.steepest(state.gradient, state.x)
        m["best_gradient"] = torch.where(per_sample(state.improved, state.x), state.gradient, m["best_gradient"])
        m["rises"] = m["rises"] + (state.value > m["value"])
        m["value"] = state.value
        x, gradient = state.x, state.gradient
        if (interval := checkpoints(self.steps).get(t)) is not None:
            stuck = ~m["halved"] & (state.best_value == m["best_then"])
            m["halved"] = (m["rises"] < _RISES_WANTED * interval) | stuck
            m["size"] = torch.where(m["halved"], m["size"] / 2, m["size"])
            m["best_then"], m["rises"] = state.best_value, torch.zeros_like(m["rises"])
            x = torch.where(per_sample(m["halved"], x), state.best_x, x)
            gradient = torch.where(per_sample(m["halved"], x), m["best_gradient"], gradient)
        z = state.ball.project(x + per_sample(m["size"], x) * state.ball.steepest(gradient, x))
        following = x + _MOMENTUM * (z - x) + (1 - _MOMENTUM) * (x - m["previous"])
        m["previous"] = x
        return following


@dataclass(frozen=True)
class SparseStep:
    """The step of APGD in l1: along the signs of the largest gradient entries, as many as the best point suggests.

    Every 4 % of the steps their number becomes (pixels the best point has changed) / 1.5. While that number falls by more
    than 5 %, the size is eps and the search goes back to its best point; else the size shrinks by 1.5, down to eps / 10.

    Attributes:
        steps: how many are planned.
        first: a start that says nothing about the number of pixels yet; it is then a fifth of all.
    """

    steps: int
    first: bool = True

    def step(self, state: AttackState, t: int) -> Tensor:
        """(A, *shape) the points x_{t+1}, before they are projected."""
        m = state.memory
        if t == 0:
            changed = torch.full_like(state.value, state.ball.size) if self.first else _changed(state.x, state.ball)
            m["size"], m["changed"], m["best_gradient"] = state.ball.eps, changed, state.gradient
            m["count"] = changed / 5 if self.first else changed / 1.5
        m["best_gradient"] = torch.where(per_sample(state.improved, state.x), state.gradient, m["best_gradient"])
        x, gradient = state.x, state.gradient
        if t and t % max(1, int(0.04 * self.steps)) == 0:
            changed = _changed(state.best_x, state.ball)
            sparser = changed < 0.95 * m["changed"]
            m["size"] = torch.where(sparser, state.ball.eps, (m["size"] / 1.5).maximum(state.ball.eps / 10))
            m["count"], m["changed"] = changed / 1.5, changed
            x = torch.where(per_sample(sparser, x), state.best_x, x)
            gradient = torch.where(per_sample(sparser, x), m["best_gradient"], gradient)
        # Pixels that their bounds stop are left out (2021, proposition 3.1).
        direction = state.ball.steepest(gradient, x, m["count"])
        return x + per_sample(m["size"], x) * direction


def _changed(x: Tensor, ball: Ball) -> Tensor:
    return (x != ball.centre).flatten(1).sum(1).to(x.dtype)


def apgd_start(ball: Ball, rng: SampleRng) -> Tensor:
    """(A, *shape) random points to start APGD from; in l1 noise as wide as the pixel range, projected onto the widest ball.

    There few pixels have changed, by much, as where the authors' code starts. A random point of the l1 ball changes every pixel by a
    little, and a network that answers small changes with nothing has no gradient to follow there (figures: docs/strength.md).
    """
    if ball.norm != "l1":
        return ball.random_point(rng)
    low, high = ball.bounds
    noise = (high - low) * rng.normal(ball.centre.shape[1:], ball.centre.dtype)
    return ball.resized(_WIDER[0]).project(ball.centre + noise)


def run_apgd(oracle: Oracle, rows: Tensor, ball: Ball, start: Tensor, *, objective: Objective, steps: int) -> SearchResult:
    """One run of APGD: ``steps + 1`` forward and ``steps`` backward passes.

    In l1 the steps are shared by three runs, each from where the one before ended: in balls of 3 eps, 2 eps and eps, which
    take one forward pass more each.
    """
    if ball.norm != "l1":
        return maximize(oracle, rows, ball, start, objective=objective, update=AdaptiveStep(steps), steps=steps)
    part = round(0.3 * steps)
    for multiple in _WIDER:
        wide = ball.resized(multiple)
        update = SparseStep(part, first=multiple == _WIDER[0])
        # Adversarial outside the budget is no success: nobody leaves, and the highest point is the next start.
        result = maximize(
            oracle, rows, wide, wide.project(start), objective=objective, update=update, steps=part, stop_when_broken=False
        )
        start = result.x
    rest = steps - len(_WIDER) * part
    return maximize(
        oracle, rows, ball, ball.project(start), objective=objective, update=SparseStep(rest, first=False), steps=rest
    )


class APGDParams(Params):
    """Parameters of ``apgd-ce`` and ``apgd-dlr``; the defaults are AutoAttack's."""

    steps: int = Field(100, ge=1, description="steps in each restart")
    restarts: int = Field(1, ge=1, description="attempts from other random starts, on the survivors only")


class APGD(Attack):
    """Auto-PGD; a subclass names the loss."""

    Params = APGDParams
    norms = ("linf", "l2", "l1")
    regions = ("given",)
    goals = ("untargeted", "targeted")
    revisions = START_REVISIONS
    source = "Croce & Hein 2020, arXiv:2003.01690; l1: Croce & Hein 2021, arXiv:2103.01208"

    @abstractmethod
    def objective(self, batch: Batch) -> Objective:
        """The loss that is maximized, bound to the samples of ``batch``."""

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """Takes at most ``restarts * (steps + 1)`` forward and ``restarts * steps`` backward passes a sample (l1: see ``run_apgd``)."""
        p, objective = self.params, self.objective(batch)

        def attempt(search: Search, rows: Tensor, ball: Ball, restart: int) -> SearchResult:
            start = apgd_start(ball, rng.fork(restart).select(rows))
            return run_apgd(search.oracle, rows, ball, start, objective=objective, steps=p.steps)

        return fixed_budget(target, batch, threat, attempt, restarts=p.restarts)


class APGDCE(APGD):
    """Auto-PGD, maximizing the cross entropy of the logits."""

    version = "3"
    loss_family = "cross-entropy"

    @override
    def objective(self, batch: Batch) -> Objective:
        return for_batch("ce", batch)


class APGDDLR(APGD):
    """Auto-PGD on the difference of logits ratio; with two classes (targeted: three) on the margin."""

    version = "2"
    loss_family = "margin"

    @override
    def objective(self, batch: Batch) -> Objective:
        return bound(scale_free, batch.labels) if batch.goals is None else bound(scale_free_towards, batch.goals)


class APGDTParams(APGDParams):
    """Parameters of ``apgd-t``; the defaults are AutoAttack's."""

    targets: int = Field(9, ge=1, description="how many wrong classes to aim at, at most all of them")
    order: Annotated[ClassOrder, AddedLater()] = Field(
        "logits", description="which come first: of the highest logits, or of the nearest boundaries (malt)"
    )
    candidates: Annotated[int, AddedLater()] = Field(
        CANDIDATES, ge=1, description="with malt: how many classes are ranked, a backward pass each"
    )


class APGDT(Attack):
    """Auto-PGD towards each of several wrong classes in turn, on the targeted DLR; any wrong class is a success.

    With two or three classes the targeted DLR is not defined, and the margin takes its place.
    """

    Params = APGDTParams
    version = "2"
    revisions = APGD.revisions
    norms = APGD.norms
    regions = ("given",)
    source = APGD.source
    loss_family = "margin"

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """Takes at most ``restarts * targets`` times the passes of one run (``run_apgd``), and those of the order."""
        p = self.params

        def attempt(search: Search, rows: Tensor, ball: Ball, number: int) -> SearchResult:
            goals = classes[:, number // p.restarts]
            start = apgd_start(ball, rng.fork(number).select(rows))
            return run_apgd(search.oracle, rows, ball, start, objective=bound(scale_free_towards, goals), steps=p.steps)

        with frozen(target.module):
            search = Search.begin(target, batch, threat)
            classes = target_classes(
                search.oracle,
                batch.inputs,
                search.clean,
                search.standing,
                norm=search.ball.norm,
                order=p.order,
                candidates=p.candidates,
            )
            for number in range(p.restarts * min(p.targets, classes.shape[1])):
                search.attempt(attempt, number)
            return search.result()
