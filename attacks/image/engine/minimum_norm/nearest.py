"""The loop of every minimum-norm attack. It exists once, here.

A minimum-norm attack walks from the clean image to the decision boundary and along it. It hands over a rule (how to
move); the loop asks the target, keeps the nearest adversarial point of each sample, and lets a sample leave when the
rule is done with it. Every sample is on its own: nothing is summed, stopped or scheduled over the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol, TypeAlias

from robustkd.attacks.image.engine.losses import targeted, untargeted
from robustkd.attacks.image.engine.oracle import Oracle, frozen
from robustkd.contracts import Attack, AttackResult, Batch, Target, ThreatModel, Traits
from robustkd.contracts.threat import Norm
from robustkd.lazy import torch
from robustkd.scoring.distances import distance, per_sample

if TYPE_CHECKING:
    from torch import Tensor

_ROUNDING = 8
"""The margin that a decision needs, in units of the logits' own rounding error: a point nearer to the boundary than that
is decided differently in another batch, and by the platform's judge."""


@dataclass(frozen=True)
class Nearest:
    """The nearest adversarial inputs known of some samples.

    Attributes:
        x: (A, *shape) the inputs; the clean one where none is known.
        norm: (A,) their distances; inf where none is known.
    """

    x: Tensor
    norm: Tensor

    def select(self, rows: Tensor) -> Nearest:
        """Some of the samples (indices or mask)."""
        return Nearest(self.x[rows], self.norm[rows])

    def updated(self, rows: Tensor, those: Nearest) -> Nearest:
        """With other points for some of the samples (indices or mask)."""
        x, norm = self.x.clone(), self.norm.clone()
        x[rows], norm[rows] = those.x, those.norm
        return Nearest(x, norm)


@dataclass
class Seekers:
    """The samples still being searched for; each tensor has one row a sample.

    Attributes:
        rows: (A,) their places in the batch.
        clean: (A, *shape) the clean images.
        x: (A, *shape) current points.
        value, gradient: what the query says about ``x``: by default the margin, which is positive where ``x`` is
            adversarial, and its gradient.
        slack: (A,) the margin below which a decision at ``x`` is rounding.
        adversarial: (A,) bool, ``x`` is adversarial beyond doubt.
        distance: (A,) of ``x`` from the clean image.
        best_x, best: the nearest adversarial point so far and its distance (inf: none).
        done: (A,) bool, set by a rule that is finished with a sample.
        memory: the rule's own tensors (moments, constants, ..).
    """

    rows: Tensor
    clean: Tensor
    x: Tensor
    value: Tensor
    gradient: Tensor
    slack: Tensor
    adversarial: Tensor
    distance: Tensor
    best_x: Tensor
    best: Tensor
    done: Tensor
    memory: dict[str, Tensor] = field(default_factory=dict)

    def select(self, keep: Tensor) -> Seekers:
        """Only the rows in the mask ``keep``."""
        tensors = {name: value[keep] for name, value in vars(self).items() if name != "memory"}
        return Seekers(**tensors, memory={name: tensor[keep] for name, tensor in self.memory.items()})

    def offer(self, x: Tensor, adversarial: Tensor, length: Tensor) -> None:
        """Keep ``x``, at distance ``length``, where it is adversarial and nearer than all before."""
        nearer = adversarial & (length < self.best)
        self.best_x = torch.where(per_sample(nearer, x), x, self.best_x)
        self.best = torch.where(nearer, length, self.best)


class MoveRule(Protocol):
    """How to move. State that belongs to a sample lives in ``seekers.memory``."""

    def step(self, now: Seekers, t: int) -> Tensor:
        """(A, *shape) the next points, inside the pixel range; ``t`` counts from 0."""


def cosine(t: int, steps: int, first: float, last: float) -> float:
    """From ``first`` at t = 0 along half a cosine to ``last`` at t = steps."""
    return last + (first - last) * (1 + math.cos(math.pi * t / steps)) / 2


Query: TypeAlias = "Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]"
"""(A, *shape) points and their (A,) rows -> logits, (A, ..) values and their gradients."""


class Question:
    """Which input nearest to each sample, in ``norm`` and inside the pixel range, does the target get wrong?

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
        self.bounds: tuple[float, float] = oracle.target.bounds
        self._margin = (untargeted if oracle.goals is None else targeted)("margin")
        self._classes = oracle.labels if oracle.goals is None else oracle.goals

    def margin(self, logits: Tensor, rows: Tensor) -> Tensor:
        """(A,) positive where the decision is the wrong one: the objective that most rules climb."""
        return self._margin(logits, self._classes[rows])

    def slope(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, the margin and its gradient: one forward and one backward pass."""
        return self.oracle.climb(x, rows, self.margin)

    def length(self, delta: Tensor) -> Tensor:
        """(A, *shape) -> (A,) in the norm that is minimised."""
        return distance(delta, self.norm)

    def slack(self, logits: Tensor) -> Tensor:
        """(A,) how large a margin must be to mean something: the confidence, and the rounding of the logits."""
        rounding = _ROUNDING * torch.finfo(logits.dtype).eps
        return self.confidence + rounding * logits.abs().amax(1).to(self.clean.dtype)

    def adversarial(self, logits: Tensor, rows: Tensor) -> Tensor:
        """(A,) bool, beyond doubt."""
        return self.margin(logits, rows) > self.slack(logits)

    def unknown(self, rows: Tensor) -> Nearest:
        """Nothing known yet."""
        return Nearest(self.clean[rows], self.clean.new_full((len(rows),), torch.inf))

    def seek(
        self,
        rows: Tensor,
        rule: MoveRule,
        steps: int,
        *,
        start: Tensor | None = None,
        known: Nearest | None = None,
        query: Query | None = None,
        enough: float | None = None,
    ) -> Nearest:
        """Follow ``rule``: at most ``steps + 1`` forward and ``steps`` backward passes (and the rule's own).

        Args:
            rows: (A,) which samples of the batch are searched for.
            rule: how to move.
            steps: how often.
            start: (A, *shape) where from; default the clean images.
            known: (A,) the nearest points of an earlier search, to be improved on.
            query: what is asked at each point; default ``slope``.
            enough: a sample leaves once it is adversarial within this distance.
        """
        clean = self.clean[rows]
        start = clean if start is None else start
        known = self.unknown(rows) if known is None else known
        if not len(rows):
            return known
        query = self.slope if query is None else query
        whole = known
        places = torch.arange(len(rows), device=rows.device)  # of the seekers among the rows of `whole`
        nothing = torch.zeros_like(known.norm)
        no = torch.zeros_like(rows, dtype=torch.bool)
        now = Seekers(rows, clean, start, nothing, start, nothing, no, nothing, known.x, known.norm, no)
        for t in range(steps + 1):
            if t < steps:
                logits, value, now.gradient = query(now.x, now.rows)
                now.value = value.to(clean.dtype)
            else:
                logits = self.oracle.logits(now.x, now.rows)
                now.done = torch.ones_like(now.done)
            now.slack = self.slack(logits)
            now.adversarial = self.adversarial(logits, now.rows)
            now.distance = self.length(now.x - now.clean)
            now.offer(now.x, now.adversarial, now.distance)
            if t < steps:
                now.x = rule.step(now, t)
            if enough is not None:
                now.done = now.done | (now.best <= enough)
            if bool(now.done.any()):
                whole = whole.updated(places[now.done], Nearest(now.best_x[now.done], now.best[now.done]))
                now, places = now.select(~now.done), places[~now.done]
                if not len(places):
                    break
        return whole


def minimum_norm(
    target: Target,
    batch: Batch,
    norm: Norm,
    search: Callable[[Question, Tensor], Nearest],
    *,
    confidence: float = 0.0,
) -> AttackResult:
    """A minimum-norm attack made of a search over the samples that are not adversarial as they come.

    Those that are (misclassified, or already at their goal) are returned unchanged, and so is a sample for which nothing
    is found.
    """
    with frozen(target.module):
        oracle = Oracle(target, batch)
        rows = torch.arange(len(batch), device=batch.inputs.device)
        logits = oracle.logits(batch.inputs, rows) if batch.logits is None else batch.logits
        already = oracle.is_adversarial(logits, rows)
        nearest = batch.inputs.clone()
        norms = torch.where(already, 0.0, torch.inf).to(batch.inputs.dtype)
        todo = rows[~already]
        if len(todo):
            found = search(Question(oracle, batch.inputs, norm, confidence, logits), todo)
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

    def refusal(self, threat: ThreatModel) -> str | None:
        """See ``Attack.refusal``."""
        norms = self.traits.norms
        if self.minimises(threat) not in norms:
            return f"cannot minimise {threat.norm} (it can {', '.join(norms)}); give it a norm of its own"
        return super().refusal(threat)
