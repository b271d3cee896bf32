"""Store -> Results: the numbers of a campaign, recomputed from per-sample evidence."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from robustkd.campaigns import samples
from robustkd.campaigns.cells import Cell
from robustkd.campaigns.plan import Plan
from robustkd.campaigns.samples import AttackRecord
from robustkd.campaigns.store import Entry, Store
from robustkd.contracts.analysis import Table
from robustkd.contracts.check import Finding
from robustkd.scoring.intervals import wilson
from robustkd.scoring.paired import compared
from robustkd.scoring.remedy import Remedy
from robustkd.scoring.results import CellResult, CellStatus, CurvePoint, DefenseResult, Results
from robustkd.scoring.verdict import verdict

FINDINGS, TABLE = "findings.json", "table.json"


@dataclass(frozen=True)
class Failure:
    """Why a cell has no result."""

    status: CellStatus
    error: str


_PENDING = Failure("pending", "not run yet")


def collect(plan: Plan, store: Store, failures: Mapping[str, Failure]) -> Results:
    """The results of every planned cell; those without one carry the reason."""
    campaign = plan.campaign
    entries = {cell.id: store.get(cell.id) for cell in plan.cells}
    records = {cell.id: samples.read(entry.folder) for cell in plan.of("attack") if (entry := entries[cell.id])}
    cells = [
        attack_result(plan, cell, entries[cell.id], records.get(cell.id), failures.get(cell.id, _PENDING))
        for cell in plan.of("attack")
    ]
    # A defense that the matrix keeps out of every attack is there for others (a teacher, a surrogate); it has no result of its own.
    untrained = {cell.defense for cell in plan.of("train") if not entries[cell.id]}
    shown = untrained.union(cell.defense for cell in plan.of("attack"))
    defenses = [
        _defense_result(plan, name, seed, entries, records, failures)
        for name in campaign.defenses
        if name in shown
        for seed in campaign.seeds
    ]
    return Results(
        campaign=campaign.name,
        threat={"norm": campaign.threat.norm, "eps": campaign.threat.eps},
        data={"name": campaign.data.name, "n": len(plan.data.test), "digest": plan.data.digest},
        cells=cells,
        defenses=defenses,
        skipped=list(plan.skipped),
        comparisons=compared(_standing(plan, records)),
        environment=environment() | ({"finished": max(times)} if (times := _finished(entries)) else {}),
    )


def environment() -> dict[str, str]:
    """Versions and machine, for the record."""
    found = {name: version(name) for name in ("robustkd", "torch", "numpy", "mlflow")}
    return found | {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}


def _finished(entries: Mapping[str, Entry | None]) -> list[str]:
    return [str(entry.meta["finished"]) for entry in entries.values() if entry]


def attack_result(
    plan: Plan, cell: Cell, entry: Entry | None, record: AttackRecord | None, failure: Failure = _PENDING
) -> CellResult:
    """The result of one attack cell."""
    use = plan.campaign.attacks[cell.attack or ""]
    names: dict[str, Any] = {
        "cell_id": cell.id,
        "defense": cell.defense,
        "attack": use.name,
        "seed": cell.seed,
        "norm": use.threat.norm,
        "eps": use.threat.eps,
    }
    if entry is None or record is None:
        return CellResult(status=failure.status, error=failure.error, **names)
    outcome = record.outcome
    low, high = wilson(int(outcome.standing.sum()), len(outcome))
    attacked = int(outcome.correct.sum())
    reached = outcome.norm[outcome.correct & np.isfinite(outcome.norm)]
    return CellResult(
        status="done",
        n=len(outcome),
        clean_accuracy=float(outcome.correct.mean()),
        robust_accuracy=float(outcome.standing.mean()),
        ci_low=low,
        ci_high=high,
        attack_success_rate=float(outcome.success.sum() / attacked) if attacked else None,
        median_norm=float(np.median(reached)) if use.plugin.kind == "minimum-norm" and len(reached) else None,
        forward_passes=int(outcome.forwards.sum()),
        backward_passes=int(outcome.backwards.sum()),
        wall_seconds=float(entry.meta["wall_seconds"]),
        curve=_curve(outcome.correct, record.broken_at, {use.threat.eps, *use.curve}),
        **names,
    )


def _defense_result(
    plan: Plan,
    name: str,
    seed: int,
    entries: Mapping[str, Entry | None],
    records: Mapping[str, AttackRecord],
    failures: Mapping[str, Failure],
) -> DefenseResult:
    campaign = plan.campaign
    mine = [cell for cell in plan.cells if cell.defense == name and cell.seed == seed]
    train = next(cell for cell in mine if cell.kind == "train")
    attacks = [cell for cell in mine if cell.kind == "attack"]
    checks = next((cell for cell in mine if cell.kind == "checks"), None)
    entry = entries[train.id]
    base: dict[str, Any] = {
        "defense": name,
        "seed": seed,
        "kind": campaign.defenses[name].kind,
        "norm": campaign.threat.norm,
        "eps": campaign.threat.eps,
    }
    if entry is None:
        failure = failures.get(train.id, _PENDING)
        return DefenseResult(status=failure.status, error=failure.error, **base)
    base |= {
        "train_seconds": float(entry.meta["wall_seconds"]),
        "history": entry.meta["history"],
        "target_hash": entry.meta["fingerprint"],
    }
    headline = [cell for cell in attacks if campaign.attacks[cell.attack or ""].threat == campaign.threat]
    found = {cell.attack or "": records[cell.id] for cell in headline if cell.id in records}
    missing = [cell for cell in attacks if cell.id not in records]
    examined = _examined(checks, entries)
    findings, remedy = examined or ([], None)
    analyses = [cell for cell in mine if cell.kind == "analysis"]
    tables = {cell.analysis: _table(made) for cell in analyses if (made := entries[cell.id])}
    base |= {"checks": findings, "remedy": remedy, "analyses": tables}
    if not found:
        failure = (
            failures.get(missing[0].id, _PENDING)
            if missing
            else Failure("failed", "no attack under the campaign's threat model")
        )
        return DefenseResult(status=failure.status, error=failure.error, **base)
    correct, standing, broken_at = _worst_case(list(found.values()))
    low, high = wilson(int(standing.sum()), len(standing))
    unchecked = checks is not None and examined is None
    status: CellStatus = "done"
    error = None
    unanalysed = [cell for cell in analyses if not entries[cell.id]]
    if missing or unchecked or unanalysed:
        lost = [*missing, *([checks] if unchecked and checks else []), *unanalysed]
        failure = failures.get(lost[0].id, _PENDING)
        status, error = failure.status, f"{len(lost)} of its cells have no result; the first: {lost[0].title}: {failure.error}"
    points = {campaign.threat.eps}.union(*(campaign.attacks[attack].curve for attack in found))
    return DefenseResult(
        status=status,
        error=error,
        n=len(standing),
        clean_accuracy=float(correct.mean()),
        robust_accuracy=float(standing.mean()),
        ci_low=low,
        ci_high=high,
        attacks=list(found),
        verdict=verdict(findings, complete=not missing) if not unchecked and checks is not None else None,
        curve=_curve(correct, broken_at, points),
        other_threats=_other_threats(plan, attacks, records),
        **base,
    )


def _standing(plan: Plan, records: Mapping[str, AttackRecord]) -> Iterator[tuple[str, int, np.ndarray]]:
    """The samples that withstand every attack under the campaign's threat model, of each defense that all of them have finished on."""
    campaign = plan.campaign
    headline = [cell for cell in plan.of("attack") if campaign.attacks[cell.attack or ""].threat == campaign.threat]
    for seed in campaign.seeds:
        for name in campaign.defenses:
            mine = [cell.id for cell in headline if (cell.defense, cell.seed) == (name, seed)]
            if mine and all(cell_id in records for cell_id in mine):
                yield name, seed, _worst_case([records[cell_id] for cell_id in mine])[1]


def _worst_case(records: Sequence[AttackRecord]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per sample over the attacks: classified rightly, still standing, and the smallest eps that broke it."""
    correct = records[0].outcome.correct
    standing = np.logical_and.reduce([record.outcome.standing for record in records])
    broken_at = np.minimum.reduce([record.broken_at for record in records])
    return correct, standing, broken_at


def _other_threats(plan: Plan, attacks: Sequence[Cell], records: Mapping[str, AttackRecord]) -> dict[str, float]:
    groups: dict[str, list[AttackRecord]] = {}
    for cell in attacks:
        threat = plan.campaign.attacks[cell.attack or ""].threat
        if threat != plan.campaign.threat and cell.id in records:
            groups.setdefault(str(threat), []).append(records[cell.id])
    return {threat: float(_worst_case(group)[1].mean()) for threat, group in groups.items()}


def _examined(checks: Cell | None, entries: Mapping[str, Entry | None]) -> tuple[list[Finding], Remedy | None] | None:
    """What a checks cell found; None when there is none yet."""
    entry = entries[checks.id] if checks is not None else None
    if entry is None:
        return None
    raw: dict[str, Any] = json.loads((entry.folder / FINDINGS).read_text())
    return [Finding(**finding) for finding in raw["findings"]], Remedy(**raw["remedy"]) if raw["remedy"] else None


def _table(entry: Entry) -> Table:
    return Table(**json.loads((entry.folder / TABLE).read_text()))


def _curve(correct: np.ndarray, broken_at: np.ndarray, points: set[float]) -> list[CurvePoint]:
    curve = []
    for eps in sorted(points):
        standing = correct & ~(broken_at <= eps)
        low, high = wilson(int(standing.sum()), len(standing))
        curve.append(CurvePoint(float(eps), float(standing.mean()), low, high))
    return curve
