"""Store -> Results: the numbers of a campaign, recomputed from per-sample evidence."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from robustkd.campaigns.plan.cells import AnalysisCell, AttackCell, Cell, ChecksCell, TrainCell
from robustkd.campaigns.plan.finished import valid_cells
from robustkd.campaigns.plan.plan import Plan
from robustkd.campaigns.store import samples
from robustkd.campaigns.store.identity import described, digest
from robustkd.campaigns.store.meta import AttackMeta, TrainMeta
from robustkd.campaigns.store.samples import AttackRecord
from robustkd.campaigns.store.store import PERTURBATIONS, Entry, Store
from robustkd.contracts.analysis import Table
from robustkd.contracts.check import Finding, Transcript
from robustkd.contracts.data import Modality
from robustkd.data import Splits
from robustkd.scoring.intervals import share, wilson
from robustkd.scoring.paired import compared
from robustkd.scoring.remedy import Remedy
from robustkd.scoring.results import CellResult, CellStatus, CurvePoint, DefenseResult, Results
from robustkd.scoring.verdict import verdict
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
    plan: Plan, store: Store, failures: Mapping[str, Failure], seen: Callable[[AttackCell, AttackRecord], None] | None = None
) -> Results:
    """The results of every planned cell; those without one carry the reason. ``seen`` is shown each finished attack's record.

    One trained defense after the other: the samples of all cells together would not fit into memory.
    """
    campaign = plan.campaign
    cells: list[CellResult] = []
    defenses: dict[tuple[str, int], DefenseResult] = {}
    standing: list[tuple[str, int, np.ndarray]] = []
    finished: list[str] = []
    shown: set[str] = set()
    for trained in _each_trained(plan, store, failures):
        name, seed = trained.train.defense, trained.train.seed
        finished += trained.finished()
        if seen:
            trained.show(seen)
        cells += trained.attack_results()
        defenses[name, seed] = _defense_result(trained)
        if trained.has_result:
            shown.add(name)
        if trained.is_complete:
            standing.append((name, seed, _worst_case([trained.records[cell.id] for cell in trained.headline])[1]))
    return Results(
        campaign=campaign.name,
        threat={"norm": campaign.threat.measure, "eps": campaign.threat.eps},
        data=data_told(plan),
        cells=cells,
        defenses=[defenses[name, seed] for name in campaign.defenses if name in shown for seed in campaign.seeds],
        skipped=list(plan.skipped),
        comparisons=compared(standing),
        attacks={name: described(use.kind, use.plugin) for name, use in campaign.attacks.items()},
        environment=environment() | ({"finished": max(finished)} if finished else {}),
    )


class _Trained:
    """A defense with one seed: its cells, and what the store has of them.

    Attributes:
        headline: its attacks under the campaign's threat model.
        entries: by cell id; None where there is none yet.
        records: of the attack cells that are finished.
    """

    def __init__(
        self, plan: Plan, cells: Sequence[Cell], store: Store, failures: Mapping[str, Failure], valid: Collection[str]
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

    def missing(self) -> list[Cell]:
        """The cells beside the training that have no result: attacks, then the checks, then analyses."""
        attacks = [cell for cell in self.attacks if cell.id not in self.records]
        others = [*([self.checks] if self.checks else []), *self.analyses]
        return attacks + [cell for cell in others if not self.entries[cell.id]]


def _each_trained(plan: Plan, store: Store, failures: Mapping[str, Failure]) -> Iterator[_Trained]:
    """Every defense with every seed, one after the other."""
    valid = valid_cells(plan, store, failures)
    groups: dict[tuple[str, int], list[Cell]] = {}
    for cell in plan.cells:
        groups.setdefault((cell.defense, cell.seed), []).append(cell)
    for seed in plan.campaign.seeds:
        for name in plan.campaign.defenses:
            yield _Trained(plan, groups[name, seed], store, failures, valid)


def environment() -> dict[str, str]:
    """Versions and machine, for the record."""
    found = {name: version(name) for name in ("robustkd", "torch", "numpy", "mlflow")}
    return found | {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}


def attack_result(
    plan: Plan, cell: AttackCell, entry: Entry | None, record: AttackRecord | None, failure: Failure = _PENDING
) -> CellResult:
    """The result of one attack cell."""
    use = plan.campaign.attacks[cell.attack]
    names: dict[str, Any] = {
        "cell_id": cell.id,
        "defense": cell.defense,
        "attack": use.name,
        "seed": cell.seed,
        "norm": use.threat.measure,
        "eps": use.threat.eps,
    }
    if entry is None or record is None:
        return CellResult(status=failure.status, error=failure.error, **names)
    outcome = record.outcome
    low, high = wilson(int(outcome.standing.sum()), len(outcome))
    reached = outcome.norm[outcome.correct & np.isfinite(outcome.norm)]
    return CellResult(
        status="done",
        n=len(outcome),
        clean_accuracy=share(held_clean(entry, outcome.correct, plan.data.modality)),
        robust_accuracy=share(outcome.standing),
        ci_low=low,
        ci_high=high,
        attack_success_rate=share(outcome.success[outcome.correct]),
        median_norm=float(np.median(reached)) if use.plugin.traits.kind == "minimum-norm" and len(reached) else None,
        forward_passes=int(outcome.forwards.sum()),
        backward_passes=int(outcome.backwards.sum()),
        wall_seconds=entry.meta.wall_seconds,
        perturbations=perturbations_kept(entry),
        agreement=_agreement(samples.transcripts(entry)),
        curve=_curve(outcome.correct, record.broken_at, {use.threat.eps, *use.curve}),
        **names,
    )


def data_told(plan: Plan) -> dict[str, Any]:
    """What results and tracking say of the data."""
    data = plan.data
    found = {
        "name": plan.campaign.data.name,
        "n": len(data.test),
        "digest": used_digest(plan),
        "test_digest": test_digest(data),
    } | ({"notes": list(data.notes)} if data.notes else {})
    if data.modality == "images":
        return found
    return found | {"modality": data.modality, "benign": len(data.benign) if data.benign else 0}


def used_digest(plan: Plan) -> str:
    """The hash of all samples; of those that are attacked alone, where nothing learns from the others: they need not be decoded."""
    campaign = plan.campaign
    learns = any(use.plugin.uses_data for use in campaign.defenses.values())
    learns = learns or any(use.plugin.traits.learns for use in campaign.attacks.values())
    return plan.data.digest if learns else test_digest(plan.data)


def test_digest(data: Splits) -> str:
    """The hash of what the numbers are of: the test samples and, of prompts, the harmless requests."""
    return data.test.digest() if data.benign is None else digest([data.test.digest(), data.benign.digest()])


def _agreement(said: Sequence[Transcript]) -> dict[str, float]:
    """Of each judge but the first, on what share of the answers it says what the first one says."""
    deciding, *others = said[0].verdicts if said else [""]
    return {name: sum(one.verdicts[name] == one.verdicts[deciding] for one in said) / len(said) for name in others}


def perturbations_kept(entry: Entry) -> int | None:
    """Of how many samples an attack cell holds the perturbed inputs; None where it was not noted."""
    return entry.noted(AttackMeta).kept if entry.has(PERTURBATIONS) else 0


def _defense_result(trained: _Trained) -> DefenseResult:
    campaign, train = trained.plan.campaign, trained.train
    entry = trained.entries[train.id]
    base: dict[str, Any] = {
        "defense": train.defense,
        "seed": train.seed,
        "kind": campaign.defenses[train.defense].kind,
        "norm": campaign.threat.measure,
        "eps": campaign.threat.eps,
    }
    if entry is None:
        failure = trained.failure(train)
        return DefenseResult(status=failure.status, error=failure.error, **base)
    meta = entry.noted(TrainMeta)
    base |= {"train_seconds": meta.wall_seconds, "history": meta.history, "target_hash": meta.fingerprint}
    found = {cell.attack: trained.records[cell.id] for cell in trained.headline if cell.id in trained.records}
    missing = trained.missing()
    unattacked = [cell for cell in missing if cell.kind == "attack"]
    examined = _examined(trained.entries[trained.checks.id]) if trained.checks else None
    findings, remedy = examined or ([], None)
    tables = {cell.analysis: _table(made) for cell in trained.analyses if (made := trained.entries[cell.id])}
    base |= {"checks": findings, "remedy": remedy, "analyses": tables}
    if not found:
        failure = trained.failure(unattacked[0]) if unattacked else _NO_HEADLINE
        return DefenseResult(status=failure.status, error=failure.error, **base)
    correct, standing, broken_at = _worst_case(list(found.values()))
    low, high = wilson(int(standing.sum()), len(standing))
    status, error = _completeness(trained, missing)
    points = {campaign.threat.eps}.union(*(campaign.attacks[attack].curve for attack in found))
    return DefenseResult(
        status=status,
        error=error,
        n=len(standing),
        clean_accuracy=share(held_clean(trained.clean_entry, correct, trained.plan.data.modality)),
        robust_accuracy=share(standing),
        ci_low=low,
        ci_high=high,
        attacks=list(found),
        verdict=verdict(findings, complete=not unattacked) if examined is not None else None,
        curve=_curve(correct, broken_at, points),
        other_threats=_other_threats(trained),
        **base,
    )


def _completeness(trained: _Trained, missing: Sequence[Cell]) -> tuple[CellStatus, str | None]:
    """The status of a defense that has a number, and what is said where some of its cells are ``missing``."""
    if not missing:
        return "done", None
    first, failure = missing[0], trained.failure(missing[0])
    return failure.status, f"{len(missing)} of its cells have no result; the first: {first.title}: {failure.error}"


def held_clean(entry: Entry, correct: np.ndarray, modality: Modality) -> np.ndarray:
    """What the clean accuracy is the share of: (N,) bool, images that were classified rightly before the attack; of a model that
    is asked, (M,) bool, harmless requests that it complied with, of which the data may have none.
    """
    return correct if modality == "images" else np.array(entry.noted(AttackMeta).benign or (), dtype=bool)


def _worst_case(records: Sequence[AttackRecord]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per sample over the attacks: classified rightly, still standing, and the smallest eps that broke it."""
    correct = records[0].outcome.correct
    standing = worst_case(record.outcome.standing for record in records)
    broken_at = np.minimum.reduce([record.broken_at for record in records])
    return correct, standing, broken_at


def _other_threats(trained: _Trained) -> dict[str, float]:
    campaign = trained.plan.campaign
    groups: dict[str, list[AttackRecord]] = {}
    for cell in trained.attacks:
        threat = campaign.attacks[cell.attack].threat
        if threat != campaign.threat and cell.id in trained.records:
            groups.setdefault(str(threat), []).append(trained.records[cell.id])
    return {threat: float(_worst_case(group)[1].mean()) for threat, group in groups.items()}


def _examined(entry: Entry | None) -> tuple[list[Finding], Remedy | None] | None:
    """What a checks cell found; None when there is none yet."""
    if entry is None:
        return None
    content = entry.read(FINDINGS)
    try:
        raw: dict[str, Any] = json.loads(content)
        return [Finding(**finding) for finding in raw["findings"]], Remedy(**raw["remedy"]) if raw["remedy"] else None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise entry.damaged(FINDINGS, str(error)) from error


def _table(entry: Entry) -> Table:
    content = entry.read(TABLE)
    try:
        return Table(**json.loads(content))
    except (ValueError, TypeError, RecursionError) as error:
        raise entry.damaged(TABLE, str(error)) from error


def _curve(correct: np.ndarray, broken_at: np.ndarray, points: set[float]) -> list[CurvePoint]:
    curve = []
    for eps in sorted(points):
        standing = correct & ~(broken_at <= eps)
        low, high = wilson(int(standing.sum()), len(standing))
        curve.append(CurvePoint(float(eps), float(standing.mean()), low, high))
    return curve
