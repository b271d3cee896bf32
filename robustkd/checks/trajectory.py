"""Checks of the way that an attack takes: it is run again on a few samples, and every point that it tries is written down."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from robustkd.checks.probe import ball_of, disjoint_balls, gradient_attacks, rescaled_margin, survivors
from robustkd.contracts import (
    Attack,
    AttackEvidence,
    Batch,
    Check,
    CheckContext,
    Finding,
    Params,
    Share,
    Target,
    ThreatModel,
    WrappedTarget,
)
from robustkd.contracts.check import Trace
from robustkd.contracts.random import SampleRng
from robustkd.evaluation.judging import ImageOutcome, judge
from robustkd.lazy import torch
from robustkd.scoring.worst_case import worst_case
from robustkd.targets.rejection import class_logits

if TYPE_CHECKING:
    from torch import Tensor


class RecordingTarget(WrappedTarget):
    """A target that writes down the rescaled margin of every point inside some sample's ball, sample by sample.

    The samples' balls must not meet (``disjoint_balls``): then it is known whose point one is, in whatever batch an attack asks.
    """

    def __init__(self, target: Target, batch: Batch, threat: ThreatModel) -> None:
        super().__init__(target)
        self._batch, self._threat = batch, threat
        self.margins: list[list[float]] = [[] for _ in range(len(batch))]

    def __call__(self, inputs: Tensor) -> Tensor:
        """The inner target's logits; the margins of points inside a ball are recorded."""
        logits = self.target(inputs)
        owner = ball_of(inputs.detach(), self._batch.inputs, self._threat)
        inside = owner >= 0
        whose = self._batch.select(owner[inside])
        values = rescaled_margin(class_logits(self.target, logits.detach()[inside], whose.labels), whose.labels, whose.goals)
        for row, value in zip(owner[inside].tolist(), values.tolist(), strict=True):
            self.margins[row].append(value)
        return logits


class SilentSuccessParams(Params):
    samples: int = Field(16, ge=1, description="survivors on which each attack is run again")


class IncompleteOptimisationParams(Params):
    samples: int = Field(16, ge=1, description="survivors on which the attack is run again")


FREE, SHARE = 3200, 0.05
"""What running an attack again may cost: 3,200 passes (16 samples of PGD with 100 steps), or 5 % of the campaign's on this target."""


def _few(context: CheckContext, attacks: list[AttackEvidence], again: AttackEvidence, most: int) -> Batch:
    """Samples that ``attacks`` left standing, as many as running ``again`` on them may cost, and one at least."""
    batch = disjoint_balls(survivors(context, attacks, most), context.threat)
    if again.passes is None or not len(batch):
        return batch
    total = sum(int(attack.passes.sum()) for attack in context.headline if attack.passes is not None)
    standing = worst_case(attack.standing for attack in attacks)
    typical = float(np.median(again.passes[standing]))
    afforded = max(1, int(max(FREE, SHARE * total) / max(typical, 1)))
    return batch.select(torch.arange(min(len(batch), afforded), device=batch.inputs.device))


def _comparable(evidence: AttackEvidence, threat: ThreatModel) -> bool:
    """Whether what the attack returns is the best, for ``threat``, of what it met: one that minimises another norm may pass by."""
    attack = evidence.attack
    return isinstance(attack, Attack) and (attack.traits.kind == "fixed-budget" or attack.minimises(threat) == threat.norm)


def _followed(context: CheckContext, evidence: AttackEvidence, batch: Batch) -> tuple[ImageOutcome, list[list[float]]]:
    """The attack run again: its outcome, and the margins of the points that it tried, sample by sample."""
    assert isinstance(evidence.attack, Attack)
    recorder = RecordingTarget(context.target, batch, context.threat)
    result = evidence.attack.run(recorder, batch, context.threat, SampleRng(context.seed, batch.index))
    return judge(context.target, evidence.attack, batch, context.threat, result), recorder.margins


def _randomised(context: CheckContext, batch: Batch) -> bool:
    with torch.no_grad():
        return not torch.equal(context.target(batch.inputs), context.target(batch.inputs))


class SilentSuccess(Check):
    """Did an attack meet an adversarial example and come back without it?

    One such sample is proof of a bug (an attack that returns its last point instead of its best one), so there is no share to
    allow for. A margin counts as adversarial from 1e-6 on: below, the verdict may be float32 rounding between batch sizes.
    """

    Params = SilentSuccessParams
    severity = "severe"
    rule = "a point that the attack tried, inside its budget, was misclassified, and the point that it returned is not"
    needs_norm = True
    source = "Pintor et al. 2022, Indicators of attack failure (silent success)"
    cost = "every attack once more, on 16 of its survivors (costly ones on fewer: 5 % of the campaign's passes)"

    def run(self, context: CheckContext) -> Finding:
        """Follow every attack on samples that it left standing."""
        known = [attack for attack in context.headline if _comparable(attack, context.threat)]
        if not known:
            return self.not_applicable("no finished attack can be run again")
        lost: dict[str, int] = {}
        seen = 0
        for evidence in known:
            batch = _few(context, [evidence], evidence, self.params.samples)
            if not len(batch):
                continue
            if _randomised(context, batch):
                return self.not_applicable("the target answers differently from pass to pass")
            seen += len(batch)
            outcome, paths = _followed(context, evidence, batch)
            met = [max(path, default=-math.inf) > 1e-6 for path in paths]
            forgotten = sum(found and bool(stands) for found, stands in zip(met, outcome.standing, strict=True))
            if forgotten:
                lost[evidence.name] = forgotten
        said = "; ".join(f"{name} met and forgot an adversarial example for {count} samples" for name, count in lost.items())
        return self.finding(
            bool(lost),
            fix="return the best point of the whole run, not the last one",
            explanation=said,
            forgotten=lost,
            n=seen,
        )


LAST, LIMIT = 10, 0.1
POINTS = 33
"""At most, of a trace."""


class IncompleteOptimisation(Check):
    """Was the strongest attack still getting somewhere when it stopped?

    What is followed is the best rescaled margin so far, restarts included: it never falls, so a rise over the last ten points
    (the last quarter of a run of fewer than forty) means that more steps would go further. The rise counts as a share of the
    whole climb, from the first point on. A climb that has not slowed down at all brings 25 % of itself in its last quarter; PGD
    with 20 steps and 2 restarts brought 0.4 to 5.4 % on the networks of the quickstart, so that 5 %, meant for
    longer runs, would be chance here.
    """

    Params = IncompleteOptimisationParams
    severity = "warning"
    rule = (
        "the last 10 points (at most a quarter) of the strongest gradient attack still bring over 10 % of its climb, on average"
    )
    needs_norm = True
    source = "Pintor et al. 2022, Indicators of attack failure (incomplete optimisation); the thresholds are ours"
    cost = "the strongest attack once more, on 16 survivors (5 % of the campaign's passes, if that is less)"

    def run(self, context: CheckContext) -> Finding:
        """Follow the strongest attack on samples that it left standing."""
        strongest = next((a for a in gradient_attacks(context) if a.attack is not None), None)
        if strongest is None:
            return self.not_applicable("the campaign has no iterative gradient attack of fixed budget")
        everything = [a for a in context.headline if len(a.standing) == len(strongest.standing)]
        batch = _few(context, everything, strongest, self.params.samples)
        paths = _paths(context, strongest, batch)
        shares = _gains(paths)
        if not shares:
            return self.not_applicable("no sample is left standing")
        gain = sum(shares) / len(shares)
        return self.finding(
            gain > LIMIT,
            fix="give the attack more steps or a better step size (APGD adapts it)",
            explanation=f"the last points that {strongest.name} tries still bring {100 * gain:.1f} % of its climb",
            remedies=[{"kind": "apgd-dlr"}],
            trace=_trace(strongest.name, paths, batch.index.tolist()),
            share_of_climb=Share(gain),
            attack=strongest.name,
            n=len(shares),
        )


def _paths(context: CheckContext, evidence: AttackEvidence, batch: Batch) -> list[list[float]]:
    """For each sample, the margins of the points that the attack tried, in its order."""
    if not len(batch):
        return []
    outcome, paths = _followed(context, evidence, batch)
    skipped = np.zeros(len(batch), dtype=int) if outcome.skipped is None else outcome.skipped
    # Each that was left out would have repeated one of the path; two passes make a point.
    return [path + (left_out + 1) // 2 * path[-1:] for path, left_out in zip(paths, skipped.tolist(), strict=True)]


def _gains(paths: Sequence[Sequence[float]]) -> list[float]:
    """For each sample, the share of the climb that the last points brought."""
    gains = []
    for path in paths:
        last = min(LAST, len(path) // 4)
        if last:
            climb = max(path) - path[0]
            gains.append((max(path) - max(path[:-last])) / climb if climb > 0 else 0.0)
    return gains


def _trace(attack: str, paths: Sequence[Sequence[float]], samples: Sequence[int]) -> Trace | None:
    """The best margin so far at evenly spaced points, of each sample and on average; a search that ended earlier stays where it was."""
    met = {sample: path for sample, path in zip(samples, paths, strict=True) if path}
    longest = max(map(len, met.values()), default=0)
    if longest < 2:
        return None
    best = np.stack([np.pad(np.maximum.accumulate(path), (0, longest - len(path)), mode="edge") for path in met.values()])
    if not np.isfinite(best).all():  # JSON has no such number
        return None
    at = np.unique(np.linspace(0, longest - 1, POINTS).round().astype(int))
    return Trace(
        attack,
        len(met),
        (at + 1).tolist(),
        best.mean(0)[at].tolist(),
        "the rescaled margin; above 0 a sample is broken",
        list(met),
        best[:, at].round(4).tolist(),
    )
