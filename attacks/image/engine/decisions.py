"""Searches that are told nothing but whether an input is adversarial.

``Decisions`` answers, counts and keeps the nearest adversarial point of each sample. A sample whose queries are spent is not
asked about any more, and its answer is no. So the searches step all samples at once and need not know who has queries left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from robustkd.attacks.image.engine.minimum_norm.nearest import MinNormProblem, Nearest, NormOfThreat, minimum_norm
from robustkd.contracts import AttackResult, Batch, Params, Target, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.contracts.threat import Norm
from robustkd.lazy import torch
from robustkd.scoring.distances import per_sample

if TYPE_CHECKING:
    from torch import Tensor

_STARTS = 32  # inputs that are tried for one that is adversarial at any distance
_BLOCKS = 4  # along each side of an image of coarse noise
_STEP = 16  # queries that it takes to go along a direction and back to the boundary
_OUTWARDS = 1 + 1e-4  # how far the nearest point is moved out at the end: at the boundary a decision is rounding


class DecisionParams(Params):
    """What every attack by decisions takes."""

    norm: Literal["linf", "l2"] | None = Field(None, description="what is minimised; default: the threat's norm")
    queries: int = Field(5000, ge=1, description="forward passes for each sample")


class DecisionAttack(NormOfThreat):
    """A minimum-norm attack that needs the predicted class alone, and so runs on targets that give no logits."""

    Params = DecisionParams
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")
    needs = frozenset()
    gradients = False
    loss_family = "none"

    def search(self, decisions: Decisions, rows: Tensor, rng: SampleRng) -> None:
        """Ask about points around the samples ``rows`` until their queries are spent."""
        raise NotImplementedError

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """Takes at most ``queries`` forward passes a sample, that of the clean image among them where nobody has made it yet."""
        norm = self.minimises(threat)
        queries_to_success = torch.zeros_like(batch.labels)

        def search(problem: MinNormProblem, rows: Tensor) -> Nearest:
            decisions = Decisions(problem, self.params.queries, batch.budget(threat), queries_to_success)
            self.search(decisions, rows, rng)
            return decisions.settled(rows)

        result = minimum_norm(target, batch, norm, search)
        return replace(result, queries_to_success=queries_to_success) if norm == threat.norm else result


class Decisions:
    """Whether points are adversarial, each answer counted, and no sample asked about beyond its queries.

    Args:
        problem: the samples, the norm and the target.
        queries: what each sample may cost; one is kept back for ``settled``.
        eps: (B,) budgets in the problem's norm.
        queries_to_success: (B,) zeros; the forward passes after which the nearest point was within eps are written here.

    Attributes:
        left: (B,) queries that each sample still has.
        nearest: (B,) the nearest adversarial points so far.
    """

    def __init__(self, problem: MinNormProblem, queries: int, eps: Tensor, queries_to_success: Tensor) -> None:
        self.oracle, self.clean, self.norm, self.bounds = problem.oracle, problem.clean, problem.norm, problem.bounds
        self.length = problem.length
        self.left = (queries - 1 - self.oracle.forwards).clamp_min(0)
        everybody = torch.arange(len(self.clean), device=self.clean.device)
        self.nearest = problem.none_found(everybody)
        self._eps, self._queries_to_success = eps, queries_to_success

    def asked_at_once(self, rows: Tensor) -> int:
        """How many points of each of ``rows`` fill a batch."""
        return max(1, len(self.clean) // max(1, len(rows)))

    def going(self, rows: Tensor) -> Tensor:
        """Those of ``rows`` that have queries left."""
        return rows[self.left[rows] > 0]

    def __call__(self, x: Tensor, rows: Tensor) -> Tensor:
        """(A,) bool, whether (A, *shape) points are adversarial."""
        return self.several(x.unsqueeze(1), rows)[0].squeeze(1)

    def several(self, x: Tensor, rows: Tensor, spared: int = 0) -> tuple[Tensor, Tensor]:
        """Whether the (A, n, *shape) points are adversarial, in one batch.

        Args:
            spared: queries of each sample that are left for later.

        Returns:
            (A, n) bool answers, and (A, n) bool which points were asked about: of each sample the first ones that its queries allow.
        """
        asked = torch.arange(x.shape[1], device=rows.device) < self.left[rows].unsqueeze(1) - spared
        answers = torch.zeros_like(asked)
        sample, number = asked.nonzero(as_tuple=True)
        if not len(sample):
            return answers, asked
        points, those = x[sample, number], rows[sample]
        before = self.oracle.forwards[rows]
        answers[sample, number] = self.oracle.is_adversarial(self.oracle.logits(points, those), those)
        self.left[rows] -= asked.sum(1)
        lengths = torch.full(asked.shape, torch.inf, dtype=points.dtype, device=points.device)
        lengths[sample, number] = self.length(points - self.clean[those])
        self._keep(x, rows, torch.where(answers, lengths, torch.inf), before)
        return answers, asked

    def _keep(self, x: Tensor, rows: Tensor, lengths: Tensor, before: Tensor) -> None:
        """Keep the nearest points. ``lengths``: (A, n), inf where a point is not adversarial; ``before``: (A,) passes made before them."""
        norm, at = lengths.min(1)
        nearer = norm < self.nearest.norm[rows]
        each = torch.arange(len(rows), device=rows.device)[nearer]
        self.nearest.x[rows[nearer]] = x[each, at[nearer]]
        self.nearest.norm[rows[nearer]] = norm[nearer]
        inside = _OUTWARDS * lengths <= self._eps[rows].unsqueeze(1)
        first = inside.any(1) & (self._queries_to_success[rows] == 0)
        self._queries_to_success[rows[first]] = (before + 1 + inside.int().argmax(1))[first]

    def settled(self, rows: Tensor) -> Nearest:
        """The nearest point of each of ``rows``, a little further out where that is adversarial too: one query, kept back for this."""
        found = rows[self.nearest.norm[rows].isfinite()]
        self.left[found] += 1
        clean = self.clean[found]
        x = (clean + _OUTWARDS * (self.nearest.x[found] - clean)).clamp(*self.bounds)
        outside = self(x, found)
        result = self.nearest.updated(found[outside], Nearest(x[outside], self.length(x - clean)[outside]))
        return result.select(rows)


def boundary_points(decisions: Decisions, rows: Tensor, rng: SampleRng, tolerance: float) -> tuple[Tensor, Tensor]:
    """Look for an adversarial input of each sample, however far away, and take it to the boundary.

    Returns:
        The rows for which there is one, and (A, *shape) the points.
    """
    rows = _with_start(decisions, rows, rng)
    return rows, onto_boundary(decisions, decisions.nearest.x[rows], rows, tolerance)


def _with_start(decisions: Decisions, rows: Tensor, rng: SampleRng) -> Tensor:
    """Those of ``rows`` for which an adversarial input is found.

    Tried are noise, coarse noise, noise of black and white, and images of one colour, in turn, as networks take each of these
    for one and the same class.
    """
    for t in range(_STARTS):
        rows_left = rows[decisions.nearest.norm[rows].isinf()]
        if not len(rows_left):
            break
        decisions(_start(decisions, rows_left, rng.select(rows_left).fork(t), t), rows_left)
    return rows[decisions.nearest.norm[rows].isfinite()]


def _start(decisions: Decisions, rows: Tensor, rng: SampleRng, t: int) -> Tensor:
    clean = decisions.clean[rows]
    low, high = decisions.bounds
    if t % 4 == 0 or clean.ndim != 4:
        unit = rng.uniform(clean.shape[1:], dtype=clean.dtype)
    elif t % 4 == 2:
        unit = rng.integers(clean.shape[1:], 2).to(clean.dtype)
    else:
        blocks = _BLOCKS if t % 4 == 1 else 1
        coarse = rng.uniform((clean.shape[1], blocks, blocks), dtype=clean.dtype)
        unit = torch.nn.functional.interpolate(coarse, clean.shape[2:], mode="nearest")
    return low + unit * (high - low)


def onto_boundary(decisions: Decisions, x: Tensor, rows: Tensor, tolerance: Tensor | float) -> Tensor:
    """(A, *shape) adversarial points, by binary search between the clean images and the adversarial ``x``.

    In l2 they are on the segment; in linf the largest changes of pixels are cut.

    Args:
        tolerance: the share of the distance to which the boundary is searched for.
    """
    clean = decisions.clean[rows]
    delta = x - clean
    low, high = torch.zeros_like(delta.flatten(1)[:, 0]), torch.ones_like(delta.flatten(1)[:, 0])
    whole = decisions.length(delta)

    def between(share: Tensor, some: Tensor | slice) -> Tensor:
        if decisions.norm == "linf":
            most = per_sample(share * whole[some], delta)
            return clean[some] + delta[some].clamp(-most, most)
        return clean[some] + per_sample(share, delta) * delta[some]

    while len(some := ((high - low > tolerance) & (decisions.left[rows] > 0)).nonzero().squeeze(1)):
        middle = (low[some] + high[some]) / 2
        outside = decisions(between(middle, some), rows[some])
        low[some], high[some] = torch.where(outside, low[some], middle), torch.where(outside, middle, high[some])
    return between(high, slice(None))


def mean_direction(
    decisions: Decisions, x: Tensor, rows: Tensor, count: int, probe: Callable[[SampleRng], Tensor], rng: SampleRng
) -> Tensor:
    """(A, *shape) the mean of random directions, each with +1 where it leads to an adversarial point and -1 where it does not.

    The mean answer is taken off first, as a baseline, unless all the answers are the same.

    Args:
        x: (A, *shape) points at the boundary.
        count: directions for each sample; fewer where it would have no queries left to go along the mean.
        probe: draws (A, *shape) steps from ``x``.
    """
    signed, plain = torch.zeros_like(x), torch.zeros_like(x)
    answers, counted = torch.zeros_like(x.flatten(1)[:, 0]), torch.zeros_like(x.flatten(1)[:, 0])
    draws, width = rng.select(rows), decisions.asked_at_once(rows)
    for first in range(0, count, width):
        steps = torch.stack([probe(draws) for _ in range(min(width, count - first))], 1)
        points = (x.unsqueeze(1) + steps).clamp(*decisions.bounds)
        outside, asked = decisions.several(points, rows, _STEP)
        # One after the other: sums in another order would be rounded differently in another batch.
        for step, sign, real in zip(
            (points - x.unsqueeze(1)).unbind(1), (2.0 * outside - 1).unbind(1), asked.to(x.dtype).unbind(1), strict=True
        ):
            signed += per_sample(sign * real, x) * step
            plain += per_sample(real, x) * step
            answers += sign * real
            counted += real
    mean = answers / counted.clamp_min(1)
    baseline = torch.where(mean.abs() == 1, 0, mean)
    return signed - per_sample(baseline, x) * plain


def dimensions(x: Tensor) -> int:
    """How many numbers a sample has."""
    return x[0].numel()


def unit(direction: Tensor, norm: Norm) -> Tensor:
    """The step of length 1 in ``norm`` that goes furthest along ``direction``: its sign in linf, itself scaled in l2."""
    if norm == "linf":
        return direction.sign()
    return direction / per_sample(direction.flatten(1).norm(dim=1), direction).clamp_min(1e-30)
