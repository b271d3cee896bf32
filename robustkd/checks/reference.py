"""The reference attack: does anything that the campaign did not try break what it left standing?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from pydantic import Field

from robustkd.checks.probe import gradient_misleads
from robustkd.contracts import Batch, Check, CheckContext, Finding, Params, RobustkdError, Share
from robustkd.evaluation.images import evaluate_attack
from robustkd.evaluation.judging import clean_shares
from robustkd.evaluation.suite import Spec, StoppingRule, SuiteAttack, TargetDiagnostics, escalation, images_of, suite_attacks
from robustkd.lazy import torch
from robustkd.scoring.intervals import share_interval
from robustkd.scoring.worst_case import worst_case

LIMIT, CERTAIN = 0.02, 0.015
"""How much of the number may be wrong, as a share of all samples: the loss that is projected, and the lower end of its interval."""


class ReferenceAttackParams(Params):
    """How many samples are attacked."""

    samples: int = Field(128, ge=1, description="samples that are attacked, drawn from those that still stand")


@dataclass
class Examination:
    """The samples that are attacked, and what the platform's attacks have left of them.

    Attributes:
        batch: (M,) of the samples that the campaign's attacks left standing.
        share: of all samples, how many these are drawn from.
        before, left: (M,) whether each stands, before and after; in [0, 1] of a target that draws random numbers.
        broken: by attack, how many samples it broke that those before it had left.
        useful: the attacks that broke any.
        without_gradient: (M,) bool, what instruments broke that do not follow the target's own gradient.
        skipped: instruments that could not be used, and why.
    """

    context: CheckContext
    batch: Batch
    share: float
    before: np.ndarray
    left: np.ndarray
    without_gradient: np.ndarray
    broken: dict[str, float] = field(default_factory=dict)
    useful: list[Spec] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    @classmethod
    def begin(cls, context: CheckContext, before: np.ndarray, samples: int) -> Examination:
        """Draw ``samples`` of those that stand (``before``, one number for each of all samples); all of a target that draws."""
        standing = np.flatnonzero(before > 0)
        if context.batch.draws is None:
            chosen = np.random.default_rng(context.seed).choice(standing, min(samples, len(standing)), replace=False)
            rows = np.sort(chosen)
        else:  # what it draws depends on the batch, and must be what it drew when it was judged before
            rows = np.arange(len(before))
        batch = context.batch.select(torch.as_tensor(rows, device=context.batch.inputs.device))
        left = before[rows].astype(float)
        share = float(before.sum()) / len(before) / left.mean()
        return cls(context, batch, share, left.copy(), left, np.zeros(len(rows), dtype=bool))

    @property
    def loss(self) -> float:
        """How much of the number is wrong, projected on all samples."""
        return float((self.before - self.left).mean()) * self.share

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of ``loss``."""
        low, high = share_interval(self.before - self.left)
        return low * self.share, high * self.share

    @property
    def settled(self) -> bool:
        """Whether so much is broken that the number is wrong."""
        return self.loss > LIMIT and self.interval[0] > CERTAIN

    def attack(self, suite: Sequence[SuiteAttack]) -> None:
        """Run the instruments, each on what those before it left, until the question is settled."""
        for attack in suite:
            if self.settled or not self.left.any():
                break
            if reason := attack.usable(self.context.target, self.context.threat):
                self.skipped[attack.name] = reason
                continue
            try:
                after = self._after(attack)
            except RobustkdError as error:
                self.skipped[attack.name] = str(error).splitlines()[0]
                continue
            broken = round(float((self.left - after).sum()), 3)
            self.broken[attack.name] = round(self.broken.get(attack.name, 0) + broken, 3)
            if broken:
                self.useful.append(attack.spec)
            if not attack.gradients:
                self.without_gradient |= after < self.left
            self.left = after

    def escalate(self, specs: Iterable[Spec]) -> None:
        """Run ever stronger attacks, until the question is settled or one by gradients and one without have broken nothing more."""
        stopping_rule = StoppingRule()
        for spec in specs:
            stronger, left = SuiteAttack.stronger(spec), self.left.sum()
            self.attack([stronger])
            stopping_rule.note(stronger.gradients, broke=bool(self.left.sum() < left))
            if self.settled or stopping_rule.reached:
                break

    def _after(self, attack: SuiteAttack) -> np.ndarray:
        """(M,) what an attack leaves. A costly one is run on some samples first, and on all where it breaks one."""
        rows = np.flatnonzero(self.left)
        some = len(rows) if self.batch.draws is not None else attack.at_first or len(rows)
        after = self._attacked(attack, self.left, rows[:some])
        broke = bool((after < self.left).any())
        return self._attacked(attack, after, rows[some:]) if broke and len(rows) > some else after

    def _attacked(self, attack: SuiteAttack, left: np.ndarray, rows: np.ndarray) -> np.ndarray:
        if self.batch.draws is not None:  # as in ``begin``
            rows = np.arange(len(left))
        part = self.batch.select(torch.as_tensor(rows, device=self.batch.inputs.device))
        found = evaluate_attack(
            self.context.target,
            attack.make(),
            part,
            self.context.threat,
            seed=self.context.seed,
            fit_data=images_of(self.batch),
            kept=0,
        )
        after = left.copy()
        after[rows] = worst_case([left[rows], found.outcome.robust_share])
        return after


class ReferenceAttack(Check):
    """Does the platform's own suite break samples that every attack of the campaign left standing?

    The suite is in ``robustkd.evaluation.suite``. What the campaign has run already, or something at least as strong, is not run
    again. It goes on until what is broken settles the question, so the loss that is projected may be less than the whole. Where the
    suite breaks something, but too little to settle it, and the target's gradient may hide more, stronger attacks follow until an attack by
    gradients and one without add nothing.

    From k broken of m examined follows how much of the number is wrong: k / m of the share that stands. Whether that is because the
    campaign's attacks are few or because the target's gradient misleads, an attack by gradients tells on what was broken without.
    """

    Params = ReferenceAttackParams
    regions = ("given", "chosen")
    severity = "severe"
    decisive = True
    rule = (
        "the platform's own attacks (PGD on the margin, a distilled surrogate, Square, BPDA and a smoothed gradient where the target "
        "shows a need, AutoAttack) break so many of the samples left standing that more than 2 points of the robust accuracy are "
        "wrong, at least 1.5 of them by the interval of this loss"
    )
    source = "Carlini et al. 2019, On evaluating adversarial robustness; Tramer et al. 2020, arXiv:2002.08347; the projection is ours"
    cost = "up to some 700 passes on each of 128 samples; next to none where the campaign has AutoAttack"

    def run(self, context: CheckContext) -> Finding:
        """Attack a part of the samples that stand."""
        if not context.headline:
            return self.not_applicable("no attack of the campaign gave a number under its threat model")
        before = worst_case([clean_shares(context.batch), *(attack.counted for attack in context.headline)])
        if not before.any():
            return self.finding(False, examined=0, standing=0)
        found = Examination.begin(context, before, self.params.samples)
        diagnostics = TargetDiagnostics.of(context.target, found.batch, context.threat, context.seed)
        suite = suite_attacks(diagnostics, context.threat)
        covered = {one.name: by.name for one in suite if (by := next(filter(one.covered, context.headline), None))}
        found.attack([one for one in suite if one.name not in covered])
        if found.useful and diagnostics.may_mask:  # where nothing is hidden, AutoAttack has gone as far as attacks go
            ran = [one.spec for one in suite]
            found.escalate(spec for spec in escalation(diagnostics, context.threat) if spec not in ran)
        if not found.broken and not covered:
            return self.not_applicable(
                f"none of the platform's attacks can be used here: {next(iter(found.skipped.values()), '')}"
            )
        low, high = found.interval
        finding = partial(
            self.finding,
            examined=len(found.batch),
            standing=int((before > 0).sum()),
            broken=found.broken,
            share=Share(found.loss),
            low=Share(low),
            high=Share(high),
            run_by_the_campaign=covered,
            skipped=found.skipped,
            replaced=list(diagnostics.replaced),
        )
        if not found.settled:
            return finding(False)
        used = dict.fromkeys(str(spec["kind"]) for spec in found.useful)
        names = ", ".join(f"{name} {count:g}" for name, count in found.broken.items() if count)
        misled = (
            "; the target's gradient does not find them: it misleads"
            if gradient_misleads(context, found.batch, found.without_gradient, diagnostics)
            else ""
        )
        return finding(
            True,
            fix=f"add {' and '.join(used)} to the campaign's attacks",
            explanation=(
                f"the campaign's attacks are too weak: of {len(found.batch)} samples that they left standing, attacks of the platform "
                f"break {(found.before - found.left).sum():g} ({names}), so at least {100 * found.loss:.1f} points of the number "
                f"are wrong{misled}"
            ),
            remedies=[dict(spec) for spec in found.useful],
        )
