"""Store -> Results: the numbers of a campaign, recomputed from per-sample evidence."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from typing import Any

import numpy as np

from robustkd.campaigns.plan.cells import AnalysisCell, AttackCell, Cell, ChecksCell, TrainCell
from robustkd.campaigns.plan.finished import valid_cells
from robustkd.campaigns.plan.plan import Plan
from robustkd.campaigns.results.queries import by_queries
from robustkd.campaigns.results.served import served
from robustkd.campaigns.store import samples
from robustkd.campaigns.store.identity import digest, plugin_identity
from robustkd.campaigns.store.meta import AttackMeta, ChecksMeta, TrainMeta
from robustkd.campaigns.store.samples import AttackRecord
from robustkd.campaigns.store.store import PERTURBATIONS, Entry, Store
from robustkd.contracts import BaseAttack
from robustkd.contracts.analysis import Table
from robustkd.contracts.check import Finding, Transcript, Verdict
from robustkd.contracts.data import DeferredArrays, Modality
from robustkd.contracts.threat import ThreatModel, told_apart
from robustkd.data import Splits
from robustkd.evaluation.modality import evaluation_of
from robustkd.scoring.intervals import share, share_interval
from robustkd.scoring.paired import compared
from robustkd.scoring.remedy import Remedy
from robustkd.scoring.results import CURVE_STEPS, CellResult, CellStatus, CurvePoint, DefenseResult, Results, with_units
from robustkd.scoring.summaries import AttackSummary, DataSummary, Environment, ThreatSummary
from robustkd.scoring.verdict import RULES, verdict
from robustkd.scoring.worst_case import worst_case

FINDINGS, TABLE = "findings.json", "table.json"


@dataclass(frozen=True)
class Failure:
    """Why a cell has no result."""

    status: CellStatus
    error: str


_PENDING = Failure("pending", "not run yet")
_NO_HEADLINE = Failure("failed", "no attack under the campaign's threat model")


def collect(
    plan: Plan,
    store: Store,
    failures: Mapping[str, Failure],
    seen: Callable[[AttackCell, AttackRecord], None] | None = None,
    *,
    rejudge: bool = False,
) -> Results:
    """The results of every planned cell; those without one carry the reason. ``seen`` is shown each finished attack's record.

    One trained defense after the other: the samples of all cells together would not fit into memory.

    Args:
        plan: the cells.
        store: what is known of them.
        failures: of cells that this run could not do.
        seen: called with each finished attack.
        rejudge: judge stored findings by the present rules, also those of checks that ran under former ones.
    """
    campaign = plan.campaign
    norm, eps, where = campaign.threat.stored_values
    cells: list[CellResult] = []
    defenses: dict[tuple[str, int], DefenseResult] = {}
    standing: list[tuple[str, int, np.ndarray]] = []
    finished: list[str] = []
    shown: set[str] = set()
    for trained in _each_trained(plan, store, failures, rejudge):
        name, seed = trained.train.defense, trained.train.seed
        finished += trained.finished()
        if seen:
            trained.show(seen)
        cells += trained.attack_results()
        defenses[name, seed] = _defense_result(trained)
        if trained.has_result:
            shown.add(name)
        if trained.is_complete:
            standing.append((name, seed, _worst_case([trained.records[cell.id] for cell in trained.headline])))
    return Results(
        campaign=campaign.name,
        threat=ThreatSummary(norm, eps, campaign.threat.goal, where),
        data=data_told(plan),
        cells=cells,
        defenses=[defenses[name, seed] for name in campaign.defenses if name in shown for seed in campaign.seeds],
        skipped=list(plan.skipped),
        comparisons=compared(standing),
        attacks={
            name: AttackSummary(**plugin_identity(use.kind, use.plugin, use.threat)) for name, use in campaign.attacks.items()
        },
        environment=environment(max(finished, default=None)),
        served=served(store.answers),
    )


class _Trained:
    """A defense with one seed: its cells, and what the store has of them.

    Attributes:
        headline: its attacks under the campaign's threat model.
        entries: by cell id; None where there is none yet.
        records: of the attack cells that are finished.
        findings: of its checks; None before they have run, and without any.
        rules: the version of the rules by which the findings are judged.
        remedy: what the attacks that the checks named left.
    """

    def __init__(
        self,
        plan: Plan,
        cells: Sequence[Cell],
        store: Store,
        failures: Mapping[str, Failure],
        valid: Collection[str],
        judged: _Judged,
    ) -> None:
        campaign = plan.campaign
        self.plan, self.cells, self.failures = plan, cells, failures
        self.train = next(cell for cell in cells if isinstance(cell, TrainCell))
        self.attacks = [cell for cell in cells if isinstance(cell, AttackCell)]
        self.headline = [cell for cell in self.attacks if campaign.attacks[cell.attack].threat == campaign.threat]
        self.checks = next((cell for cell in cells if isinstance(cell, ChecksCell)), None)
        self.analyses = [cell for cell in cells if isinstance(cell, AnalysisCell)]
        self.entries = {cell.id: store.get(cell.id) if cell.id in valid else None for cell in cells}
        self.records = {cell.id: samples.read(entry) for cell in self.attacks if (entry := self.entries[cell.id])}
        found = judged.entry(self.checks, self.entries) if self.checks else None
        self.findings, self.remedy = _read_findings(found)
        self.rules = judged.rules(found)

    @property
    def has_result(self) -> bool:
        """False of a defense that the matrix keeps out of every attack: it is there for others (a teacher, a surrogate)."""
        return bool(self.attacks) or not self.entries[self.train.id]

    @property
    def is_complete(self) -> bool:
        """Whether every attack under the campaign's threat model is finished."""
        return bool(self.headline) and all(cell.id in self.records for cell in self.headline)

    @property
    def clean_entry(self) -> Entry:
        """The first finished attack under the campaign's threat model: it knows what held before the attack."""
        return next(entry for cell in self.headline if (entry := self.entries[cell.id]))

    def failure(self, cell: Cell) -> Failure:
        """Why a cell has no result."""
        return self.failures.get(cell.id, _PENDING)

    def finished(self) -> list[str]:
        """When each of its finished cells was finished."""
        return [entry.meta.finished for entry in self.entries.values() if entry]

    @property
    def verdict(self) -> Verdict | None:
        """What the findings make of its number; None without any."""
        if self.findings is None:
            return None
        return verdict(self.findings, complete=not self.unattacked(), rules=self.rules)

    def show(self, seen: Callable[[AttackCell, AttackRecord], None]) -> None:
        """Call ``seen`` with each finished attack and its record."""
        for cell in self.attacks:
            if cell.id in self.records:
                seen(cell, self.records[cell.id])

    def attack_results(self) -> list[CellResult]:
        """The result of each of its attack cells, finished or not."""
        return [
            attack_result(self.plan, cell, self.entries[cell.id], self.records.get(cell.id), self.failure(cell))
            for cell in self.attacks
        ]

    def headline_records(self) -> dict[str, AttackRecord]:
        """The record of each finished attack under the campaign's threat model, by the attack's name."""
        return {cell.attack: self.records[cell.id] for cell in self.headline if cell.id in self.records}

    def tables(self) -> dict[str, Table]:
        """The table of each finished analysis, by the analysis's name."""
        return {cell.analysis: _table(entry) for cell in self.analyses if (entry := self.entries[cell.id])}

    def unattacked(self) -> list[AttackCell]:
        """The attacks that have no result."""
        return [cell for cell in self.attacks if cell.id not in self.records]

    def missing(self) -> list[Cell]:
        """The cells beside the training that have no result: attacks, then the checks, then analyses."""
        others = [*([self.checks] if self.checks else []), *self.analyses]
        return [*self.unattacked(), *(cell for cell in others if not self.entries[cell.id])]


class _Judged:
    """The findings of the plan's checks, or of former ones on the same target and attacks where those have not run yet."""

    def __init__(self, store: Store, rejudge: bool) -> None:
        self._store, self._rejudge = store, rejudge

    def entry(self, cell: ChecksCell, entries: Mapping[str, Entry | None]) -> Entry | None:
        """The checks' entry; where there is none, that of the last checks that looked at the same outcomes."""
        if entry := entries[cell.id]:
            return entry
        trained = entries[cell.target]
        if trained is None or not all(entries.get(attack) for attack in cell.attacks.values()):
            return None
        former = self._former.get(tuple(sorted(cell.attacks.values())))
        made_on = former.meta.targets.get(cell.target) if former else None
        return former if made_on in (None, trained.noted(TrainMeta).fingerprint) else None

    def rules(self, entry: Entry | None) -> int:
        """The version of the rules to judge an entry's findings by."""
        return RULES if entry is None or self._rejudge else entry.noted(ChecksMeta).rules or 1

    @cached_property
    def _former(self) -> dict[tuple[str, ...], Entry]:
        """The last entry of checks in the store by the ids of the attacks that they looked at, which are ids of their target too."""
        known = [entry for cell_id in self._store.ids() if (entry := self._store.get(cell_id)) and entry.meta.kind == "checks"]
        found = {}
        for entry in sorted(known, key=lambda entry: entry.meta.finished):
            found[tuple(sorted(cell_id for _, cell_id in entry.meta.identity.get("attacks", ())))] = entry
        return found


def _each_trained(plan: Plan, store: Store, failures: Mapping[str, Failure], rejudge: bool) -> Iterator[_Trained]:
    """Every defense with every seed, one after the other."""
    valid, judged = valid_cells(plan, store, failures), _Judged(store, rejudge)
    groups: dict[tuple[str, int], list[Cell]] = {}
    for cell in plan.cells:
        groups.setdefault((cell.defense, cell.seed), []).append(cell)
    for seed in plan.campaign.seeds:
        for name in plan.campaign.defenses:
            yield _Trained(plan, groups[name, seed], store, failures, valid, judged)


def environment(finished: str | None) -> Environment:
    """Versions and machine, with the time when the last cell was ``finished``."""
    versions = {name: version(name) for name in ("robustkd", "torch", "numpy", "mlflow")}
    machine = f"{platform.system()} {platform.machine()}"
    return Environment(**versions, python=platform.python_version(), machine=machine, finished=finished)


def attack_result(
    plan: Plan, cell: AttackCell, entry: Entry | None, record: AttackRecord | None, failure: Failure = _PENDING
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
        clean_accuracy=share(held_clean(entry, outcome.clean_share, plan.data.modality)),
        robust_accuracy=share(outcome.robust_share),
        ci_low=low,
        ci_high=high,
        attack_success_rate=share(outcome.success[outcome.decided]),
        median_norm=outcome.median_norm if use.plugin.traits.kind == "minimum-norm" else None,
        forward_passes=int(outcome.forwards.sum()),
        backward_passes=int(outcome.backwards.sum()),
        wall_seconds=entry.meta.wall_seconds,
        perturbations=perturbations_kept(entry),
        unjudged=_unjudged([record]),
        agreement=_agreement(samples.transcripts(entry)),
        draws=outcome.draws,
        curve=_curve([record], {eps, *use.curve}, everywhere=_measures_every_eps(use.plugin)),
        by_queries=by_queries(use.plugin, outcome),
    )


def data_told(plan: Plan) -> DataSummary:
    """What results and tracking say of the data."""
    data = plan.data
    benign = evaluation_of(data.modality).harmless(data)
    return DataSummary(
        plan.campaign.data.name,
        len(data.test),
        used_digest(plan),
        test_digest(data),
        data.modality,
        benign,
        data.notes,
        1.0 if data.unit is None else data.unit.scale,
    )


def used_digest(plan: Plan) -> str:
    """The hash of all samples; of those that are attacked alone, where the others would have to be decoded for nothing but this."""
    campaign, data = plan.campaign, plan.data
    learns = any(use.plugin.uses_data for use in campaign.defenses.values())
    learns = learns or any(use.plugin.traits.learns for use in campaign.attacks.values())
    return data.digest if learns or not isinstance(data.train, DeferredArrays) else test_digest(data)


def test_digest(data: Splits[Any]) -> str:
    """The hash of what the numbers are of: the test samples and, of prompts, the harmless requests."""
    return data.test_digests[0] if data.benign is None else digest(data.test_digests)


def _agreement(said: Sequence[Transcript]) -> dict[str, float]:
    """Of each judge but the first, on what share of the answers it says what the first one says."""
    deciding, *others = said[0].verdicts if said else [""]
    return {name: sum(one.verdicts[name] == one.verdicts[deciding] for one in said) / len(said) for name in others}


def perturbations_kept(entry: Entry) -> int | None:
    """Of how many samples an attack cell holds the perturbed inputs; None where it was not noted."""
    return entry.noted(AttackMeta).kept if entry.has(PERTURBATIONS) else 0


def _defense_result(trained: _Trained) -> DefenseResult:
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
    )
    attacks = trained.headline_records()
    if not attacks:
        unattacked = trained.unattacked()
        return _without_number(result, trained.failure(unattacked[0]) if unattacked else _NO_HEADLINE)
    return _with_worst_case(result, trained, attacks)


def _without_number(result: DefenseResult, failure: Failure) -> DefenseResult:
    return replace(result, status=failure.status, error=failure.error)


def _with_worst_case(result: DefenseResult, trained: _Trained, attacks: Mapping[str, AttackRecord]) -> DefenseResult:
    """``result`` with the worst case over ``attacks``, which are the finished ones under the campaign's threat model."""
    campaign = trained.plan.campaign
    records = list(attacks.values())
    held = _worst_case(records)
    low, high = share_interval(held)
    status, error = _completeness(trained)
    points = {campaign.threat.budget.stored[1]}.union(*(campaign.attacks[attack].curve for attack in attacks))
    return replace(
        result,
        status=status,
        error=error,
        n=len(held),
        clean_accuracy=share(held_clean(trained.clean_entry, records[0].outcome.clean_share, trained.plan.data.modality)),
        robust_accuracy=share(held),
        ci_low=low,
        ci_high=high,
        attacks=list(attacks),
        verdict=trained.verdict,
        verdict_rules=None if trained.findings is None else trained.rules,
        draws=max(record.outcome.draws for record in records),
        curve=_curve(
            records,
            points,
            everywhere=any(_measures_every_eps(campaign.attacks[name].plugin) for name in attacks),
        ),
        unjudged=_unjudged(records),
        other_threats=_other_threats(trained),
    )


def _completeness(trained: _Trained) -> tuple[CellStatus, str | None]:
    """The status of a defense that has a number, and what is said where some of its cells have no result."""
    missing = trained.missing()
    if not missing:
        return "done", None
    first, failure = missing[0], trained.failure(missing[0])
    return failure.status, f"{len(missing)} of its cells have no result; the first: {first.title}: {failure.error}"


def held_clean(entry: Entry, clean_share: np.ndarray, modality: Modality) -> np.ndarray:
    """What the clean accuracy is the mean of, (M,): see ``ModalityEvaluation.clean``."""
    return evaluation_of(modality).clean(clean_share, entry.noted(AttackMeta).benign)


def _worst_case(records: Sequence[AttackRecord]) -> np.ndarray:
    """(N,) what the attacks leave of each sample at the headline eps."""
    return worst_case(record.outcome.robust_share for record in records)


def _undecided(records: Sequence[AttackRecord]) -> np.ndarray:
    """(N,) bool: no attack is known to have broken it, and of one at least it is not known."""
    outcomes = [record.outcome for record in records]
    open_ = np.logical_or.reduce([outcome.eligible & ~outcome.decided for outcome in outcomes])
    undecided: np.ndarray = open_ & ~np.logical_or.reduce([outcome.success for outcome in outcomes])
    return undecided


def _unjudged(records: Sequence[AttackRecord]) -> float | None:
    """The share of requests that could not be judged; None of images, which need no judge."""
    return share(_undecided(records)) if all(record.outcome.needs_judge for record in records) else None


def _other_threats(trained: _Trained) -> dict[str, float]:
    campaign = trained.plan.campaign
    groups: dict[ThreatModel, list[AttackRecord]] = {}
    for cell in trained.attacks:
        threat = campaign.attacks[cell.attack].threat
        if threat != campaign.threat and cell.id in trained.records:
            groups.setdefault(threat, []).append(trained.records[cell.id])
    return {name: float(_worst_case(groups[threat]).mean()) for threat, name in told_apart(groups).items()}


def _read_findings(entry: Entry | None) -> tuple[list[Finding] | None, Remedy | None]:
    """The findings of a checks cell, None while it has none, and the remedy."""
    if entry is None:
        return None, None
    content = entry.read(FINDINGS)
    try:
        raw: dict[str, Any] = json.loads(content)
        return [Finding(**with_units(finding)) for finding in raw["findings"]], Remedy(**raw["remedy"]) if raw[
            "remedy"
        ] else None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise entry.damaged(FINDINGS, str(error)) from error


def _table(entry: Entry) -> Table:
    content = entry.read(TABLE)
    try:
        return Table(**json.loads(content))
    except (ValueError, TypeError, RecursionError) as error:
        raise entry.damaged(TABLE, str(error)) from error


def _measures_every_eps(attack: BaseAttack) -> bool:
    """Whether it finds each sample's smallest eps, and not only whether one that was asked for is enough."""
    return attack.traits.kind == "minimum-norm"


def _curve(records: Sequence[AttackRecord], points: set[float], *, everywhere: bool) -> list[CurvePoint]:
    """The worst case over the attacks at each of ``points``, which were attacked; where known ``everywhere``, between 0 and them too."""
    between = np.linspace(0, max(points), CURVE_STEPS + 1)[1:-1].tolist() if everywhere else []
    curve, decided = [], ~_undecided(records)
    for eps in sorted({*points, *between}):
        held = decided * worst_case(record.robust_share(eps) for record in records)
        curve.append(CurvePoint(float(eps), float(held.mean()), *share_interval(held)))
    return curve
