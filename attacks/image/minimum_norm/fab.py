"""FAB: walk along the decision boundary, drawn towards the clean image.

    linearise f at x_k, take the nearest hyperplane pi                      (of the classes, in norm p)
    d1 = proj_p(x_k, pi) - x_k,  d2 = proj_p(x, pi) - x                     (inside the pixel range)
    a  = min(||d1|| / (||d1|| + ||d2||), a_max)
    x' = clip((1 - a) (x_k + eta d1) + a (x + eta d2))
    x_k+1 = (1 - beta) x + beta x'   if x' is adversarial, else x'

``fab-t`` linearises the boundary with one other class only, the highest ones in turn: one backward pass a step instead of
one for each class.

Good for distances without anything to tune, and indifferent to the logits' scale. ``fab`` costs a backward pass for each
class in every step, so many classes want ``fab-t``; masked gradients give it hyperplanes that are not there.

Source: Croce & Hein: Minimally distorted adversarial examples with a fast adaptive boundary attack (ICML 2020), algorithm 1;
the targeted form is that of Croce & Hein: AutoAttack (ICML 2020), section 5.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from robustkd.attacks.image.engine.ball import Ball
from robustkd.attacks.image.engine.minimum_norm.linearise import boundary_with, nearest_boundary, onto_hyperplane
from robustkd.attacks.image.engine.minimum_norm.nearest import (
    MinNormProblem,
    MinNormState,
    Nearest,
    NormOfThreat,
    Query,
    in_parts,
    minimum_norm,
)
from robustkd.attacks.image.engine.minimum_norm.refine import between, refine
from robustkd.attacks.image.engine.target_classes import CANDIDATES, ClassOrder, target_classes
from robustkd.contracts import AttackResult, Batch, Params, Target, ThreatModel
from robustkd.contracts.params import AddedLater
from robustkd.contracts.random import SampleRng
from robustkd.contracts.threat import Norm
from robustkd.lazy import torch
from robustkd.scoring.distances import per_sample

if TYPE_CHECKING:
    from torch import Tensor

_TOLERANCES = 2  # aimed at the boundary itself, a coarse model (bfloat16) would never be sure that it was crossed


class FABParams(Params):
    """Parameters of ``fab``; the paper's defaults."""

    norm: Literal["linf", "l2", "l1"] | None = Field(None, description="what is minimised; default: the threat's norm")
    steps: int = Field(100, ge=1, description="steps of each run")
    restarts: int = Field(1, ge=1, description="runs; the first starts at the clean image, others at random points near it")
    targeted: bool = Field(False, description="look at one other class at a time, a run for each")
    targets: int = Field(9, ge=1, description="how many other classes, the first ones of ``order``; at most all of them")
    order: Annotated[ClassOrder, AddedLater()] = Field(
        "logits", description="of the classes looked at one at a time: highest logits, or malt: nearest boundaries"
    )
    candidates: Annotated[int, AddedLater()] = Field(
        CANDIDATES, ge=1, description="with malt: how many classes are ranked, a backward pass each"
    )
    alpha_max: float = Field(0.1, ge=0, le=1, description="the largest pull towards the clean image")
    eta: float = Field(1.05, ge=1, description="by how much a step overshoots the hyperplane")
    beta: float = Field(0.9, gt=0, lt=1, description="how far a step back to the clean image stays from it")
    enough: float | None = Field(None, gt=0, description="a sample is done once an example is this near")


class FABTParams(FABParams):
    """The settings of FAB, with runs towards each other class by default."""

    targeted: bool = Field(True, description="look at one other class at a time, a run for each")


class FAB(NormOfThreat):
    """Fast adaptive boundary attack, a minimum-norm attack in Linf, L2 or L1."""

    Params = FABParams
    norms = ("linf", "l2", "l1")
    goals = ("untargeted", "targeted")
    version = "2"
    source = "Croce & Hein 2020, arXiv:1907.02044"
    loss_family = "margin"

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """Each run takes at most ``2 * steps + 1`` forward passes, and ``steps`` backward passes for each class looked at; at the end
        come those of ``refine``.
        """
        p = self.params
        norm = self.minimises(threat)

        def search(problem: MinNormProblem, rows: Tensor) -> Nearest:
            update = FABStep(problem, norm, p.alpha_max, p.eta, p.beta)
            best = problem.none_found(rows)
            for number, query in enumerate(self._queries(problem, rows, norm)):
                for restart in range(p.restarts):
                    going = torch.ones_like(rows, dtype=torch.bool) if p.enough is None else best.norm > p.enough
                    if not bool(going.any()):
                        return best
                    everybody = bool(going.all())
                    active, best_active = rows[going], best if everybody else best.select(going)
                    start = None
                    if restart:
                        radius = best_active.norm.minimum(batch.budget(threat)[active]) / 2
                        draws = rng.fork(f"{number}/{restart}").select(active)
                        start = Ball.around(problem.clean_of(active), radius, norm, problem.bounds).random_point(draws)
                    best_active = problem.minimize(
                        active, update, p.steps, start=start, best=best_active, query=query, enough=p.enough
                    )
                    best = best_active if everybody else best.updated(going, best_active)
                    del start, best_active  # images, which would stay in memory
            far = best.norm > (0 if p.enough is None else p.enough)
            if bool(far.all()):
                return refine(problem, rows, best)
            return best.updated(far, refine(problem, rows[far], best.select(far)))

        return minimum_norm(target, batch, norm, search)

    def _queries(self, problem: MinNormProblem, rows: Tensor, norm: Norm) -> Iterator[Query]:
        p = self.params
        if not p.targeted or problem.oracle.goals is not None:
            yield nearest_boundary(problem, problem.norm, p.targets, _TOLERANCES)
            return
        others = target_classes(
            problem.oracle, problem.clean, problem.logits, rows, norm=norm, order=p.order, candidates=p.candidates
        )
        for other in others[:, : p.targets].unbind(1):
            yield boundary_with(problem, other, _TOLERANCES)


class FABT(FAB):
    """Fast adaptive boundary attack, one other class at a time."""

    Params = FABTParams
    source = "Croce & Hein 2020, arXiv:1907.02044 and arXiv:2003.01690"


@dataclass(frozen=True)
class FABStep:
    """One step of algorithm 1, with a forward pass of its own at the point that it leads to."""

    problem: MinNormProblem
    norm: Norm
    alpha_max: float
    eta: float
    beta: float

    def step(self, state: MinNormState, t: int) -> Tensor:
        """(A, *shape) the next points x_k+1."""
        problem, clean = self.problem, state.clean
        x = torch.cat(
            [self._towards_both(*part) for part in zip(*in_parts(state.x, clean, state.value, state.gradient), strict=True)]
        )
        logits = problem.oracle.logits(x, state.rows)
        state.keep_if_nearer(x, problem.adversarial(logits, state.rows), problem.distance_of(x, clean))
        # On the boundary, as far as rounding can tell, no hyperplane would move it any more: back from there too.
        beyond = problem.margin(logits, state.rows) > -problem.decision_tolerance(logits)
        return torch.where(per_sample(beyond, x), between(clean, x, self.beta), x, out=x)

    def _towards_both(self, point: Tensor, clean: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        """The step from points, drawn towards the clean images, before it is known what the target says there."""
        bounds, length = self.problem.bounds, self.problem.length
        value_at_clean = value + (gradient * (clean - point)).flatten(1).sum(1)
        d1 = onto_hyperplane(point, value, gradient, self.norm, bounds) - point
        d2 = onto_hyperplane(clean, value_at_clean, gradient, self.norm, bounds) - clean
        length1, length2 = length(d1), length(d2)
        alpha = (length1 / (length1 + length2).clamp_min(1e-30)).clamp_max(self.alpha_max)
        alpha = per_sample(alpha, clean)
        return ((1 - alpha) * (point + self.eta * d1) + alpha * (clean + self.eta * d2)).clamp(*bounds)
