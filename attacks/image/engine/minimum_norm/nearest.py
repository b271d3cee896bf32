"""The loop of every minimum-norm attack.

A minimum-norm attack walks from the clean image to the decision boundary and along it. It supplies an update (how to move);
the loop queries the target, keeps the nearest adversarial point of each sample, and lets a sample leave when the update is
done with it. Every sample is on its own: nothing is summed, stopped or scheduled over the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol, TypeAlias

from typing_extensions import override

from robustkd.attacks.image.engine.cuda_graphs import replayed
from robustkd.attacks.image.engine.losses import targeted, untargeted
from robustkd.attacks.image.engine.oracle import Oracle, frozen
from robustkd.contracts import Attack, AttackResult, Batch, Target, ThreatModel, Traits
from robustkd.contracts.target import Bounds
from robustkd.contracts.threat import Norm
from robustkd.lazy import torch
from robustkd.scoring.distances import distance, per_sample

if TYPE_CHECKING:
    from torch import Tensor

_VALUES = 2**20
"""How many pixel values are worked on at once where that takes a dozen tensors of their size."""
_ROUNDING = 8
"""The margin that a decision needs, in units of the logits' own rounding error: a point nearer to the boundary than that
is decided differently in another batch, and by the platform's judge."""


def in_parts(images: Tensor, *others: Tensor) -> list[tuple[Tensor, ...]]:
    """Images and other tensors of the same samples, each split into parts of few pixels."""
    size = max(1, _VALUES // max(1, images[0].numel())) if len(images) else 1
    return [tensor.split(size) for tensor in (images, *others)]


@dataclass(frozen=True)
class Nearest:
    """The nearest adversarial inputs found so far, for some samples.

    Attributes:
        x: (A, *shape) the inputs; the clean one where none was found.
        norm: (A,) their distances; inf where none was found.
    """

    x: Tensor
    norm: Tensor

    def select(self, rows: Tensor) -> Nearest:
        """Some of the samples (indices or mask)."""
        return Nearest(self.x[rows], self.norm[rows])

    def updated(self, rows: Tensor, those: Nearest) -> Nearest:
        """A copy with the points of ``those`` for some of the samples (indices or mask)."""
        x, norm = self.x.clone(), self.norm.clone()
        x[rows], norm[rows] = those.x, those.norm
        return Nearest(x, norm)

    def copy(self) -> Nearest:
        """The same in tensors of its own."""
        return Nearest(self.x.clone(), self.norm.clone())

    def take(self, where: Tensor, x: Tensor, norm: Tensor) -> None:
        """Write ``x``, at distances ``norm``, over the samples in the mask ``where``."""
        torch.where(per_sample(where, x), x, self.x, out=self.x)
        torch.where(where, norm, self.norm, out=self.norm)


@dataclass
class MinNormState:
    """The active set: the samples still being searched for; each tensor has one row a sample.

    Attributes:
        rows: (A,) their positions in the batch.
        clean: (A, *shape) the clean images.
        x: (A, *shape) current points.
        value, gradient: what the query returns for ``x``: by default the margin, which is positive where ``x`` is
            adversarial, and its gradient.
        decision_tolerance: (A,) the margin below which a decision at ``x`` may be rounding.
        adversarial: (A,) bool, the margin at ``x`` is above ``decision_tolerance``.
        distance: (A,) of ``x`` from the clean image.
        best_x, best: the nearest adversarial point so far and its distance (inf: none).
        done: (A,) bool, set by an update that is finished with a sample.
        memory: the update's own tensors (moments, constants, ..).
    """

    rows: Tensor
    clean: Tensor
    x: Tensor
    value: Tensor
    gradient: Tensor
    decision_tolerance: Tensor
    adversarial: Tensor
    distance: Tensor
    best_x: Tensor
    best: Tensor
    done: Tensor
    memory: dict[str, Tensor] = field(default_factory=dict)

    def select(self, keep: Tensor) -> MinNormState:
        """Only the rows in the mask ``keep``."""
        tensors = {name: value[keep] for name, value in vars(self).items() if name != "memory"}
        return MinNormState(**tensors, memory={name: tensor[keep] for name, tensor in self.memory.items()})

    def keep_if_nearer(self, x: Tensor, adversarial: Tensor, length: Tensor) -> None:
        """Keep ``x``, at distance ``length``, where it is adversarial and nearer than all before."""
        nearer = adversarial & (length < self.best)
        torch.where(per_sample(nearer, x), x, self.best_x, out=self.best_x)
        self.best = torch.where(nearer, length, self.best)


class MinNormUpdate(Protocol):
    """How to move. State that belongs to a sample lives in ``state.memory``."""

    def step(self, state: MinNormState, t: int) -> Tensor:
        """(A, *shape) the next points, inside the pixel range; ``t`` counts from 0."""


def cosine(t: int, steps: int, first: float, last: float) -> float:
    """A schedule that falls from ``first`` at t = 0 along half a cosine to ``last`` at t = steps."""
    return last + (first - last) * (1 + math.cos(math.pi * t / steps)) / 2


Query: TypeAlias = "Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]"
"""(A, *shape) points and their (A,) rows -> logits, (A, ..) values and their gradients."""


class MinNormProblem:
    """Find the adversarial input nearest to each sample, in ``norm`` and inside the pixel range.

    Args:
        oracle: queries and counts.
        clean: (B, *shape) every sample of the oracle's batch.
        norm: what is minimised.
        confidence: the margin that counts as adversarial.
        logits: (B, K) the target's output on ``clean``.
    """

    def __init__(self, oracle: Oracle, clean: Tensor, norm: Norm, confidence: float, logits: Tensor) -> None:
        self.oracle = oracle
        self.clean = clean
        self.logits = logits
        self.norm = norm
        self.confidence = confidence
        self.bounds: Bounds = oracle.target.bounds
        self._margin = (untargeted if oracle.goals is None else targeted)("margin")
        self._classes = oracle.labels if oracle.goals is None else oracle.goals

    def margin(self, logits: Tensor, rows: Tensor) -> Tensor:
        """(A,) the logit margin, positive where the sample is adversarial: the objective that most updates maximize."""
        return self._margin(logits, self._classes[rows])

    def margin_and_grad(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, the margin and its gradient: one forward and one backward pass."""
        return self.oracle.value_and_grad(x, rows, self.margin)

    def length(self, delta: Tensor) -> Tensor:
        """(A, *shape) -> (A,) in the norm that is minimised."""
        return distance(delta, self.norm)

    def distance_of(self, x: Tensor, clean: Tensor) -> Tensor:
        """(A,) the lengths of ``x - clean``, a part of the samples at a time."""
        lengths = [self.length(x_ - clean_) for x_, clean_ in zip(*in_parts(x, clean), strict=True)]
        return lengths[0] if len(lengths) == 1 else torch.cat(lengths)

    def decision_tolerance(self, logits: Tensor) -> Tensor:
        """(A,) the margin above which a sample counts as adversarial: the confidence plus the rounding error of the logits."""
        rounding = _ROUNDING * torch.finfo(logits.dtype).eps
        return self.confidence + rounding * logits.abs().amax(1).to(self.clean.dtype)

    def adversarial(self, logits: Tensor, rows: Tensor) -> Tensor:
        """(A,) bool: the margin is above ``decision_tolerance``."""
        return self.margin(logits, rows) > self.decision_tolerance(logits)

    def clean_of(self, rows: Tensor) -> Tensor:
        """(A, *shape) the clean images of ``rows``, not to be written into: of all samples in their order no copy is made."""
        everybody = len(rows) == len(self.clean) and bool((rows.diff() == 1).all())
        return self.clean if everybody else self.clean[rows]

    def none_found(self, rows: Tensor) -> Nearest:
        """The start of a search: no adversarial input is known of ``rows``, so their distances are infinite."""
        return Nearest(self.clean[rows], self.clean.new_full((len(rows),), torch.inf))

    def minimize(
        self,
        rows: Tensor,
        update: MinNormUpdate,
        steps: int,
        *,
        start: Tensor | None = None,
        best: Nearest | None = None,
        query: Query | None = None,
        enough: float | None = None,
    ) -> Nearest:
        """Minimize the distance: at most ``steps + 1`` forward and ``steps`` backward passes, and those of the update itself.

        Args:
            rows: (A,) which samples of the batch are searched for.
            update: how to move.
            steps: how often.
            start: (A, *shape) where from; default the clean images.
            best: (A,) the nearest points of an earlier search, to be improved on: they are written over.
            query: what is evaluated at each point; default ``margin_and_grad``.
            enough: a sample leaves once it is adversarial within this distance.
        """
        clean = self.clean_of(rows)
        start = clean if start is None else start
        best = self.none_found(rows) if best is None else best
        if not len(rows):
            return best
        query = self.margin_and_grad if query is None else query
        active = torch.arange(len(rows), device=rows.device)  # the rows of `best` that `state` still has
        zero = torch.zeros_like(best.norm)
        no = torch.zeros_like(rows, dtype=torch.bool)
        no_slope = clean.new_zeros(()).expand(clean.shape[1:])  # takes no memory
        state = MinNormState(rows, clean, start, zero, no_slope.expand_as(start), zero, no, zero, best.x, best.norm, no)
        del start
        for t in range(steps + 1):
            state.gradient = no_slope.expand_as(state.x)  # the former one is not kept beside what the network needs
            if t < steps:
                logits, value, state.gradient = query(state.x, state.rows)
                state.value = value.to(clean.dtype)
            else:
                logits = self.oracle.logits(state.x, state.rows)
                state.done = torch.ones_like(state.done)
            state.decision_tolerance = self.decision_tolerance(logits)
            state.adversarial = self.adversarial(logits, state.rows)
            state.distance = self.distance_of(state.x, state.clean)
            state.keep_if_nearer(state.x, state.adversarial, state.distance)
            if t < steps:
                state.x = update.step(state, t)
            if enough is not None:
                state.done = state.done | (state.best <= enough)
            if bool(state.done.any()):
                out = active[state.done]
                best.norm[out] = state.best[state.done]
                if state.best_x is not best.x:
                    best.x[out] = state.best_x[state.done]
                state, active = state.select(~state.done), active[~state.done]
                if not len(active):
                    break
        return best


def minimum_norm(
    target: Target,
    batch: Batch,
    norm: Norm,
    search: Callable[[MinNormProblem, Tensor], Nearest],
    *,
    confidence: float = 0.0,
) -> AttackResult:
    """A minimum-norm attack made of a search over the samples that are not adversarial as they come.

    Those that are (misclassified, or already at their goal) are returned unchanged, and so is a sample for which nothing
    is found.
    """
    with frozen(target.module):
        oracle = Oracle(target, batch, outputs=replayed(target, batch.inputs))
        rows = torch.arange(len(batch), device=batch.inputs.device)
        logits = oracle.logits(batch.inputs, rows) if batch.logits is None else oracle.classes(batch.logits, rows)
        already = oracle.is_adversarial(logits, rows)
        norms = torch.where(already, 0.0, torch.inf).to(batch.inputs.dtype)
        todo = rows[~already]
        found = search(MinNormProblem(oracle, batch.inputs, norm, confidence, logits), todo) if len(todo) else None
        nearest = batch.inputs.clone()
        if found is not None:
            nearest[todo], norms[todo] = found.x, found.norm
    return AttackResult(nearest, norms.isfinite(), oracle.forwards, oracle.backwards, extras={"norm": norms})


class NormOfThreat(Attack):
    """A minimum-norm attack in several norms: it minimises its parameter ``norm``, or where that is None the threat's."""

    kind = "minimum-norm"

    @property
    def traits(self) -> Traits:
        """It minimises one norm where its parameters name one."""
        norm: Norm | None = self.params.norm
        return super().traits if norm is None else replace(super().traits, norms=(norm,))

    def minimises(self, threat: ThreatModel) -> Norm:
        """The norm that is minimised under ``threat``."""
        norm: Norm | None = self.params.norm
        return threat.norm if norm is None else norm

    @override
    def norm_under(self, threat: ThreatModel) -> str:
        return threat.budget.identity[0] if self.params.norm is None else self.minimises(threat)

    def refusal(self, threat: ThreatModel) -> str | None:
        """Why this attack cannot be used under ``threat``: also where it cannot minimise the threat's norm; None when it can."""
        norms = self.traits.norms
        if self.minimises(threat) not in norms:
            return f"cannot minimise {threat.norm} (it can {', '.join(norms)}); give it a norm of its own"
        return super().refusal(threat)
