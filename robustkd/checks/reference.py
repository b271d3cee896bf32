"""The reference attack: does anything that the campaign did not try break what it left standing?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from robustkd.contracts import Batch, Check, CheckContext, Finding, Params, RobustkdError, Share
from robustkd.evaluation.images import evaluate_attack
from robustkd.evaluation.judging import clean_shares
from robustkd.evaluation.suite import Instrument, Traces, images_of, instruments
from robustkd.lazy import torch
from robustkd.scoring.intervals import share_interval
from robustkd.scoring.worst_case import worst_case

if TYPE_CHECKING:
    from robustkd.contracts import Evidence

LIMIT = 0.02
"""How much of the number may be wrong, as a share of all samples."""


class ReferenceAttackParams(Params):
    """How many samples are attacked."""

    samples: int = Field(128, ge=1, description="samples that are attacked, drawn from those that still stand")


class ReferenceAttack(Check):
    """Does the platform's own suite break samples that every attack of the campaign left standing?

    The suite is in ``robustkd.evaluation.suite``. What the campaign has run already, or something at least as strong, is not run
    again. It is attacked until what is broken settles the question, so the loss that is projected may be less than the whole.

    From k broken of m examined follows how much of the number is wrong: k / m of the share that stands. Whether that is because the
    campaign's attacks are few or because the target's gradient misleads is told by what broke them.
    """

    Params = ReferenceAttackParams
    severity = "severe"
    decisive = True
    rule = (
        "the platform's own attacks (PGD on the margin, a distilled surrogate, Square, BPDA and a smoothed gradient where the target shows "
        "a need, AutoAttack) break so many of the samples left standing that more than 2 points of the robust accuracy are wrong"
    )
    source = "Carlini et al. 2019, On evaluating adversarial robustness; Tramer et al. 2020, arXiv:2002.08347; the projection is ours"
    cost = "up to some 700 passes on each of 128 samples; next to none where the campaign has AutoAttack"

    def run(self, context: CheckContext) -> Finding:
        """Attack a part of the samples that stand."""
        if not context.headline:
            return self.not_applicable("no attack of the campaign gave a number under its threat model")
        before = worst_case([clean_shares(context.batch), *(attack.counted for attack in context.headline)])
        standing = np.flatnonzero(before > 0)
        if not len(standing):
            return self.finding(False, examined=0, standing=0)
        rows = self._chosen(context, standing)
        batch = context.batch.select(torch.as_tensor(rows, device=context.batch.inputs.device))
        traces = Traces.of(context.target, batch, context.threat, context.seed)
        suite = instruments(traces, context.threat)
        covered = {one.name: name.name for one in suite if (name := next(filter(one.covered, context.headline), None))}
        left, share = before[rows].astype(float), float(before.sum()) / len(before)
        broken, skipped, used = {}, {}, []
        for instrument in (one for one in suite if one.name not in covered):
            if reason := instrument.usable(context.target, context.threat):
                skipped[instrument.name] = reason
                continue
            if self._settled(before[rows] - left, share) or not left.any():
                break
            try:
                after = self._left(context, batch, instrument, left)
            except RobustkdError as error:
                skipped[instrument.name] = str(error).splitlines()[0]
                continue
            broken[instrument.name] = round(float((left - after).sum()), 3)
            used.append(instrument)
            left = after
        if not used and not covered:
            return self.not_applicable(f"none of the platform's attacks can be used here: {skipped}")
        lost = before[rows] - left
        low, high = share_interval(lost)
        fired = self._settled(lost, share)
        evidence: dict[str, Evidence] = {
            "examined": len(rows),
            "standing": len(standing),
            "broken": broken,
            "share": Share(float(lost.mean()) * share),
            "low": Share(low * share),
            "high": Share(high * share),
            "run_by_the_campaign": covered,
            "skipped": skipped,
            "replaced": list(traces.replaced),
        }
        hidden = sum(broken[one.name] for one in used if not one.gradients) > sum(
            broken[one.name] for one in used if one.gradients
        )
        names = ", ".join(f"{name} {count:g}" for name, count in broken.items() if count)
        return self.finding(
            fired,
            severity=None,
            fix=("the target's own gradient misleads: add " if hidden else "the campaign's attacks are too weak: add ")
            + " and ".join(one.name for one in used if broken[one.name])
            + " to the campaign",
            explanation=(
                f"the campaign's attacks are too weak: of {len(rows)} samples that they left standing, attacks of the platform break "
                f"{lost.sum():g} ({names}), so {'at least ' if fired else ''}{100 * float(lost.mean()) * share:.1f} points of the number "
                "are wrong" + ("; most of them need no gradient of the target, which misleads" if hidden else "")
            )
            if fired
            else "",
            remedies=[dict(one.spec) for one in used if broken[one.name]],
            **evidence,
        )

    def _chosen(self, context: CheckContext, standing: np.ndarray) -> np.ndarray:
        # What a target draws depends on the batch, and must be what it drew when it was judged before.
        if context.batch.draws is not None:
            return np.arange(len(context.batch))
        most = min(self.params.samples, len(standing))
        return np.sort(np.random.default_rng(context.seed).choice(standing, most, replace=False))

    def _settled(self, lost: np.ndarray, share: float) -> bool:
        low, _ = share_interval(lost)
        return float(lost.mean()) * share > LIMIT and low > 0

    def _left(self, context: CheckContext, batch: Batch, instrument: Instrument, left: np.ndarray) -> np.ndarray:
        """(N,) what the instrument leaves of ``left``. A costly one is run on some samples first, and on all where it breaks one."""
        if batch.draws is not None:  # as in ``_chosen``
            return self._attacked(context, batch, instrument, left, np.arange(len(left)))
        rows = np.flatnonzero(left)
        some = instrument.at_first or len(rows)
        after = self._attacked(context, batch, instrument, left, rows[:some])
        broke = bool((after < left).any())
        return self._attacked(context, batch, instrument, after, rows[some:]) if broke and len(rows) > some else after

    def _attacked(
        self, context: CheckContext, batch: Batch, instrument: Instrument, left: np.ndarray, rows: np.ndarray
    ) -> np.ndarray:
        part = batch.select(torch.as_tensor(rows, device=batch.inputs.device))
        found = evaluate_attack(
            context.target, instrument.make(), part, context.threat, seed=context.seed, fit_data=images_of(batch), kept=0
        )
        after = left.copy()
        after[rows] = worst_case([left[rows], found.outcome.robust_share])
        return after
