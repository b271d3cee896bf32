"""A campaign of 500 cells and 10,000 samples: the first page and a sample come at once."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from viewer.conftest import served

from robustkd.campaigns.store import samples
from robustkd.campaigns.store.identity import digest
from robustkd.campaigns.store.meta import AttackMeta
from robustkd.campaigns.store.samples import AttackRecord
from robustkd.campaigns.store.store import Store
from robustkd.evaluation.judging import ImageOutcome
from robustkd.scoring.results import CellResult, CurvePoint, DefenseResult, Results
from robustkd.scoring.summaries import DataSummary, ThreatSummary

N, DEFENSES, ATTACKS = 10_000, 10, 50


def cell_id(defense: int, attack: int) -> str:
    return digest("made up", defense, attack)


def logits(*classes: np.ndarray) -> np.ndarray:
    """(N, len(classes), 10) float32, of which each (N,) class is the highest."""
    return np.eye(10, dtype=np.float32)[np.stack(classes, 1)]


def made_up(folder: Path) -> None:
    """Results of 500 cells, of which those of the first defense are in the store."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 10, N)
    before = np.where(rng.random(N) < 0.9, label, (label + 1) % 10)
    store = Store(folder)
    store.prepare()
    cells, defenses = [], []
    curve = [CurvePoint(eps / 255, 0.9 - eps / 20, 0.85 - eps / 20, 0.95 - eps / 20) for eps in range(9)]
    for d in range(DEFENSES):
        for a in range(ATTACKS):
            id_ = cell_id(d, a)
            numbers = (N, 0.9, 0.5, 0.49, 0.51, 0.4)
            cells.append(CellResult(id_, f"defense-{d}", f"attack-{a}", 0, "done", "linf", 8 / 255, *numbers, curve=curve))
            if d == 0:
                success = (rng.random(N) < 0.3) & (before == label)
                after = np.where(success, (label + 2) % 10, before)
                distance = np.full(N, 8 / 255, np.float32)
                outcome = ImageOutcome(
                    index=np.arange(N), label=label, eligible=before == label, success=success, forwards=np.full(N, 20),
                    backwards=np.full(N, 20), before=before, after=after, distance=distance, norm=distance, loss=distance,
                )  # fmt: skip
                meta = AttackMeta(defense="defense-0", seed=0, wall_seconds=1.0, attack=f"attack-{a}", kept=500)
                with store.write(id_, meta) as draft:
                    record = AttackRecord(outcome, np.where(success, 8 / 255, np.inf))
                    samples.write(record, rng.random((500, 3, 32, 32), np.float32), draft, logits=logits(before, after)[:500])
        attacks = [f"attack-{a}" for a in range(ATTACKS)]
        more = (N, 0.9, 0.3 + d / 20, 0.29, 0.31, attacks, "credible")
        defenses.append(DefenseResult(f"defense-{d}", 0, "made-up", "done", "linf", 8 / 255, *more, curve=curve))
    results = Results("large", ThreatSummary("linf", 8 / 255), DataSummary("cifar10", N, "a" * 64), cells, defenses)
    (folder / "results.json").write_text(results.to_json())


@pytest.mark.timeout(900)
def test_pages_of_a_large_campaign_come_at_once(tmp_path):
    made_up(tmp_path / "runs/large")
    spent = {}
    with served(tmp_path / "runs") as get:

        def ask(what: str, path: str, **query: object) -> str:
            began = time.process_time()
            answer = get(path, **query)
            spent[what] = time.process_time() - began
            assert answer.status == 200, answer.text
            return answer.text

        get("style.css")  # imports and templates are of the server's start
        assert "defense-9" in ask("leaderboard", "/")
        assert "attack-49" in ask("campaign", "campaign", run="large")
        of = {"run": "large", "defense": "defense-0", "seed": 0}
        ask("list", "samples", **of)
        assert ask("sample", "sample", n=7, **of).count('<table class="scores">') == ATTACKS
        ask("another sample", "sample", n=8000, show="broken", by="attack-7", **of)
        ask("page 150", "samples", page=150, **of)
        assert get("image", run="large", cell=cell_id(0, 3), row=7, which="adversarial").body[:4] == b"\x89PNG"
    assert spent["leaderboard"] < 1
    assert spent["sample"] < 0.3
    assert spent["another sample"] < 0.3
