"""The numbers of one trained defense: its worst case and verdict, or why it has none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from robustkd.campaigns.results.attack_result import clean_shares
from robustkd.campaigns.results.certificates import bracket_of, contradiction
from robustkd.campaigns.results.curve import accuracy_curve, measures_every_eps, unjudged_share, worst_case_of
from robustkd.campaigns.results.failure import NO_HEADLINE, Failure
from robustkd.campaigns.results.parts import by_class, by_group, groups_of
from robustkd.campaigns.results.trained import Trained
from robustkd.campaigns.store.meta import TrainMeta
from robustkd.campaigns.store.samples import AttackRecord
from robustkd.contracts.threat import ThreatModel, distinct_names
from robustkd.scoring.intervals import share, share_interval
from robustkd.scoring.results import CellStatus, DefenseResult
from robustkd.scoring.weakest import group_accuracies, weakest


def defense_result(trained: Trained) -> DefenseResult:
    """The result of a trained defense: its worst case and verdict, or why it has none."""
    campaign, train = trained.plan.campaign, trained.train
    kind, threat = campaign.defenses[train.defense].kind, campaign.threat
    norm, eps, where = threat.stored_values
    result = DefenseResult(train.defense, train.seed, kind, "pending", norm, eps, where=where)
    entry = trained.entries[train.id]
    if entry is None:
        return _without_number(result, trained.failure(train))
    meta = entry.noted(TrainMeta)
    result = replace(
        result,
        train_seconds=meta.wall_seconds,
        history=meta.history,
        target_hash=meta.fingerprint,
        checks=trained.findings or [],
        remedy=trained.remedy,
        analyses=trained.tables(),
        training_set=trained.training_set(),
    )
    attacks = trained.headline_records()
    if not attacks:
        unattacked = trained.unattacked()
        return _without_number(result, trained.failure(unattacked[0]) if unattacked else NO_HEADLINE)
    return _with_worst_case(result, trained, attacks)


def _without_number(result: DefenseResult, failure: Failure) -> DefenseResult:
    return replace(result, status=failure.status, error=failure.error)


def _with_worst_case(result: DefenseResult, trained: Trained, attacks: Mapping[str, AttackRecord]) -> DefenseResult:
    """``result`` with the worst case over ``attacks``, which are the finished ones under the campaign's threat model."""
    campaign = trained.plan.campaign
    records = list(attacks.values())
    held = worst_case_of(records)
    low, high = share_interval(held)
    status, error = _completeness(trained)
    between = bracket_of(result.analyses, attacks)
    clean = clean_shares(trained.clean_entry, records[0].outcome.clean_share, trained.plan.data.modality)
    groups = by_group(records[0].outcome.label, groups_of(trained.plan))
    contradicted = contradiction(between, result.analyses, attacks)
    points = {campaign.threat.budget.stored[1]}.union(*(campaign.attacks[attack].curve for attack in attacks))
    return replace(
        result,
        status=status,
        error=error,
        n=len(held),
        clean_accuracy=share(clean),
        robust_accuracy=share(held),
        ci_low=low,
        ci_high=high,
        attacks=list(attacks),
        verdict="not credible" if contradicted and contradicted.fired else trained.verdict,
        checks=[*result.checks, contradicted] if contradicted else result.checks,
        bracket=between,
        verdict_rules=None if trained.findings is None else trained.rules,
        draws=max(record.outcome.draws for record in records),
        curve=accuracy_curve(
            records,
            points,
            everywhere=any(measures_every_eps(campaign.attacks[name].plugin) for name in attacks),
        ),
        unjudged=unjudged_share(records),
        worst_class=weakest(held, by_class(records[0].outcome.label, trained.plan.data.classes)),
        worst_group=weakest(held, groups),
        groups=group_accuracies(clean, held, groups) if len(clean) == len(held) else {},
        other_threats=_other_threats(trained),
    )


def _completeness(trained: Trained) -> tuple[CellStatus, str | None]:
    """The status of a defense that has a number, and what is said where some of its cells have no result."""
    missing = trained.missing()
    if not missing:
        return "done", None
    first, failure = missing[0], trained.failure(missing[0])
    has = "has" if len(missing) == 1 else "have"
    return failure.status, f"{len(missing)} of its cells {has} no result; the first: {first.title}: {failure.error}"


def _other_threats(trained: Trained) -> dict[str, float]:
    campaign = trained.plan.campaign
    groups: dict[ThreatModel, list[AttackRecord]] = {}
    for cell in trained.attacks:
        threat = campaign.attacks[cell.attack].threat
        if threat != campaign.threat and cell.id in trained.records:
            groups.setdefault(threat, []).append(trained.records[cell.id])
    return {name: float(worst_case_of(groups[threat]).mean()) for threat, name in distinct_names(groups).items()}
