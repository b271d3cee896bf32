"""A made-up campaign to track, and what MLflow says of it afterwards."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from robustkd.contracts.check import Finding
from robustkd.reporting import GalleryItem
from robustkd.scoring.results import CellResult, CurvePoint, DefenseResult, Results
from robustkd.scoring.summaries import DataSummary, ThreatSummary
from robustkd.tracking import MlflowTracker, TrackedCampaign, tracking_uri
from robustkd.tracking.origin import origin_of
from robustkd.tracking.run_store import connect

SECRET = "hunter2-do-not-log"
DATA = DataSummary("digits", 100, "0123456789abcdef" * 4)


def cell(defense: str = "mtard", attack: str = "pgd", seed: int = 0, **changes) -> CellResult:
    curve = [CurvePoint(eps, 0.9 - eps, 0.8 - eps, 0.95 - eps) for eps in (0.0, 0.05, 0.1)]
    numbers = {
        "status": "done", "norm": "linf", "eps": 0.1, "n": 100, "clean_accuracy": 0.9, "robust_accuracy": 0.8, "ci_low": 0.71,
        "ci_high": 0.87, "attack_success_rate": 1 / 9, "forward_passes": 2100, "backward_passes": 2000, "wall_seconds": 1.5,
        "curve": curve,
    }  # fmt: skip
    return CellResult(f"id-{defense}-{attack}-{seed}", defense, attack, seed, **{**numbers, **changes})


def failed(defense: str, attack: str, seed: int, error: str) -> CellResult:
    return CellResult("", defense, attack, seed, "failed", "linf", 0.1, error=error)


def defended(defense: str = "mtard", seed: int = 0, **changes) -> DefenseResult:
    check = Finding("zero-gradient", "severe", True, {"explanation": "93 % of the gradients are zero"}, "attack the logits")
    history = [{"epoch": epoch, "train_loss": 2.0 / (1 + epoch), "validation_accuracy": 0.5 + epoch / 10} for epoch in range(3)]
    values = {
        "n": 100, "clean_accuracy": 0.9, "robust_accuracy": 0.75, "ci_low": 0.65, "ci_high": 0.82, "attacks": ["pgd", "cw"],
        "verdict": "not credible", "checks": [check], "history": history, "train_seconds": 7.0, "target_hash": f"hash-{defense}-{seed}",
        "curve": cell().curve, "other_threats": {"l2 <= 0.5": 0.3},
    }  # fmt: skip
    return DefenseResult(defense, seed, "mtard", "done", "linf", 0.1, **{**values, **changes})


def results(*cells: CellResult, defenses: tuple[DefenseResult, ...] = ()) -> Results:
    return Results("quick", ThreatSummary("linf", 0.1), DATA, list(cells), list(defenses))


def campaign(plan_id: str = "plan-1", **changes) -> TrackedCampaign:
    defenses = {
        "mtard": {"kind": "mtard", "epochs": 4, "inner": {"kind": "pgd", "steps": 7}, "teachers": ["a", "b"], "init": None}
    }
    settings = {"defenses": defenses, "attacks": {"pgd": {"kind": "pgd", "steps": 20}}} | changes
    return TrackedCampaign("quick", plan_id, "version: 1\n", DATA, **settings)


def gallery(count: int, attack: str = "pgd") -> list[GalleryItem]:
    clean = np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 8, 8)
    return [GalleryItem("mtard", attack, 0, clean, np.clip(clean + 0.1, 0, 1), 3, 3, 5, 0.1, "linf") for _ in range(count)]


def client(folder: Path):
    return connect(tracking_uri(folder))


def runs(folder: Path, query: str = "tags.`robustkd.kind` != 'trend'") -> dict[str, object]:
    """The runs of the experiment, by name; names must be unique."""
    store = client(folder)
    found = store.search_runs([store.get_experiment_by_name(origin_of(folder).experiment("quick")).experiment_id], query)
    assert len({run.info.run_name for run in found}) == len(found)
    return {run.info.run_name: run for run in found}


def track(folder: Path, outcome: Results, plan: TrackedCampaign | None = None, **more) -> MlflowTracker:
    problems: list[str] = []
    tracker = MlflowTracker(folder, plan or campaign(), warn=problems.append)
    tracker.finish(outcome, force=True, **more)
    assert problems == []
    return tracker


CELL, WORST, PARENT = "mtard × pgd · seed 0", "mtard · worst case · seed 0", "quick · campaign plan-1"
