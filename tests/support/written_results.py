"""Output folders as a campaign leaves them, with per-sample evidence that is known: nothing is trained or attacked."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from robustkd.campaigns.store import samples
from robustkd.campaigns.store.meta import AttackMeta
from robustkd.campaigns.store.store import Store
from robustkd.contracts.check import Verdict
from robustkd.contracts.json_value import JsonValue
from robustkd.evaluation.judging import ImageOutcome
from robustkd.scoring.intervals import share_interval
from robustkd.scoring.paired import compared
from robustkd.scoring.results import CellResult, DefenseResult, Results
from robustkd.scoring.summaries import AttackSummary, DataSummary, GateSummary, ThreatSummary

N = 400


def outcome(correct: np.ndarray, standing: np.ndarray, index: np.ndarray | None = None) -> ImageOutcome:
    """What an attack leaves: (n,) which samples are right before it, and which are after it."""
    n = len(correct)
    zeros, label = np.zeros(n), np.zeros(n, np.int64)
    before = np.where(correct, 0, 1)
    index = np.arange(n) * 3 if index is None else index
    whole = np.ones(n, np.int64)
    success = correct & ~standing
    return ImageOutcome(index, label, correct, success, whole, whole, before, np.where(standing, 0, 1), zeros, zeros, zeros)


def draw(seed: int, **shares: float) -> dict[str, np.ndarray]:
    """Standing samples by attack: the same samples are hard for every attack, plus some luck."""
    rng = np.random.default_rng(seed)
    hard = rng.random(N)
    return {attack: hard + rng.normal(0, 0.02, N) < share for attack, share in shares.items()}


def write(
    folder: Path,
    drawn: dict[tuple[str, int], dict[str, np.ndarray]],
    *,
    cells: bool = True,
    test: str = "data-1",
    eps: float = 0.1,
    verdict: Verdict | None = "credible",
    target: str | None = None,
    steps: int | None = 20,
    lost: Collection[tuple[str, str, int]] = (),
    undefended: Sequence[str] = (),
    gates: Sequence[tuple[str, float]] = (),
    **params: JsonValue,
) -> Path:
    """An output folder; of ``lost`` (defense, attack, seed) the cells have no result."""
    folder.mkdir(parents=True)
    store = Store(folder)
    store.prepare()
    rows: list[CellResult] = []
    defenses: list[DefenseResult] = []
    complete: list[tuple[str, int, np.ndarray]] = []
    for (defense, seed), attacks in drawn.items():
        n = len(next(iter(attacks.values())))
        correct = np.logical_or.reduce(list(attacks.values()))
        kept = {name: standing for name, standing in attacks.items() if (defense, name, seed) not in lost}
        for attack, standing in attacks.items():
            cell_id = f"{len(rows):032x}"
            if attack not in kept:
                rows.append(CellResult(cell_id, defense, attack, seed, "pending", "linf", eps, error="not run yet"))
                continue
            if cells:
                with store.write(cell_id, AttackMeta(defense=defense, seed=seed, wall_seconds=1.0)) as into:
                    record = samples.AttackRecord(outcome(correct, standing), np.full(len(standing), np.inf))
                    samples.write(record, np.zeros((0, 1)), into)
            share = {"n": n, "clean_accuracy": correct.mean(), "robust_accuracy": standing.mean()}
            rows.append(CellResult(cell_id, defense, attack, seed, "done", "linf", eps, **share))
        row = DefenseResult(defense, seed, "pgd-at", "pending", "linf", eps, verdict=verdict, target_hash=target)
        if kept:
            worst = np.logical_and.reduce(list(kept.values()))
            low, high = share_interval(worst)
            share = {"n": n, "clean_accuracy": correct.mean(), "robust_accuracy": worst.mean(), "ci_low": low, "ci_high": high}
            status = "done" if len(kept) == len(attacks) else "pending"
            row = DefenseResult(**vars(row) | share | {"status": status, "attacks": list(kept)})
        if len(kept) == len(attacks):
            complete.append((defense, seed, worst))
        defenses.append(row)
    data = DataSummary("digits", N, f"all of {test}", test)
    names = {row.attack for row in rows} if steps else ()
    results = Results(
        "mine",
        ThreatSummary("linf", eps),
        data,
        rows,
        defenses,
        attacks={name: AttackSummary("pgd", "1", {"steps": steps, **params}) for name in names},
        comparisons=compared(complete),
        gates=[GateSummary(name, "robust_accuracy", at_least) for name, at_least in gates],
        undefended=list(undefended),
    )
    (folder / "results.json").write_text(json.dumps(results.to_dict()))
    return folder
