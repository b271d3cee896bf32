"""The numbers of one attack on one trained defense."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from robustkd.campaigns.plan.cells import AttackCell
from robustkd.campaigns.plan.plan import Plan
from robustkd.campaigns.results.conditions import conditions
from robustkd.campaigns.results.curve import accuracy_curve, measures_every_eps, unjudged_share
from robustkd.campaigns.results.failure import PENDING, Failure
from robustkd.campaigns.results.queries import by_queries
from robustkd.campaigns.store import samples
from robustkd.campaigns.store.meta import AttackMeta
from robustkd.campaigns.store.samples import AttackRecord
from robustkd.campaigns.store.store import PERTURBATIONS, Entry
from robustkd.contracts.check import Transcript
from robustkd.contracts.data import Modality
from robustkd.evaluation.modality import evaluation_of
from robustkd.scoring.intervals import share, share_interval
from robustkd.scoring.results import CellResult


def attack_result(
    plan: Plan, cell: AttackCell, entry: Entry | None, record: AttackRecord | None, failure: Failure = PENDING
) -> CellResult:
    """The result of one attack cell."""
    use = plan.campaign.attacks[cell.attack]
    norm, eps, where = use.threat.stored_values
    result = CellResult(
        cell.id,
        cell.defense,
        use.name,
        cell.seed,
        failure.status,
        norm,
        eps,
        error=failure.error,
        goal=use.threat.goal,
        where=where,
        conditions=conditions(plan, cell),
    )
    if entry is None or record is None:
        return result
    outcome = record.outcome
    low, high = share_interval(outcome.robust_share)
    return replace(
        result,
        status="done",
        error=None,
        n=len(outcome),
        clean_accuracy=share(clean_shares(entry, outcome.clean_share, plan.data.modality)),
        robust_accuracy=share(outcome.robust_share),
        ci_low=low,
        ci_high=high,
        attack_success_rate=share(outcome.success[outcome.decided]),
        median_norm=outcome.median_norm if use.plugin.traits.kind == "minimum-norm" else None,
        forward_passes=int(outcome.forwards.sum()),
        backward_passes=int(outcome.backwards.sum()),
        wall_seconds=entry.meta.wall_seconds,
        perturbations=perturbations_kept(entry),
        unjudged=unjudged_share([record]),
        agreement=_agreement(samples.transcripts(entry)),
        draws=outcome.draws,
        curve=accuracy_curve([record], {eps, *use.curve}, everywhere=measures_every_eps(use.plugin)),
        by_queries=by_queries(use.plugin, outcome),
        detection=outcome.detection_beside(_harmless_alarms(entry)),
    )


def clean_shares(entry: Entry, clean_share: np.ndarray, modality: Modality) -> np.ndarray:
    """What the clean accuracy is the mean of, (M,): see ``ModalityEvaluation.clean``."""
    return evaluation_of(modality).clean(clean_share, entry.noted(AttackMeta).benign)


def _harmless_alarms(entry: Entry) -> np.ndarray | None:
    alarms = entry.noted(AttackMeta).harmless_alarms
    return None if alarms is None else np.array(alarms)


def _agreement(said: Sequence[Transcript]) -> dict[str, float]:
    """Of each judge but the first, on what share of the answers it says what the first one says."""
    deciding, *others = said[0].verdicts if said else [""]
    return {name: sum(one.verdicts[name] == one.verdicts[deciding] for one in said) / len(said) for name in others}


def perturbations_kept(entry: Entry) -> int | None:
    """Of how many samples an attack cell holds the perturbed inputs; None where it was not noted."""
    return entry.noted(AttackMeta).kept if entry.has(PERTURBATIONS) else 0
