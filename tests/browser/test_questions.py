"""Ten questions of a reader, each answered by the viewer in at most three clicks, in a real browser.

The answers are taken from the store and results.json, not from the pages.
"""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from viewer.conftest import finished, rewritten, served

import robustkd
from robustkd.campaigns.store import samples
from robustkd.campaigns.store.store import Store
from robustkd.reporting.formatting import interval, percent
from robustkd.reporting.summary import summary_rows
from robustkd.reporting.verdict_text import answer
from support.campaigns import tiny_campaign

pytestmark = pytest.mark.slow
__all__ = ["finished"]  # a fixture

MOST_CLICKS = 3
WEEKLY = {
    "train": 300,
    "defenses": {"plain": "{kind: standard, model: tiny-cnn, epochs: 6}"},
    "attacks": {"pgd": "{kind: pgd, steps: 3, restarts: 2}"},
}
BROKEN = "def attack(model, x, y, eps):\n    raise RuntimeError('the oven is cold')\n"


@pytest.fixture(scope="module")
def runs(finished, tmp_path_factory):
    """The finished campaigns, one that was run again with another attack ten days later, and one with an attack that fails."""
    runs = tmp_path_factory.mktemp("questions") / "runs"
    shutil.copytree(finished, runs)
    place = runs / "weekly"
    robustkd.run(tiny_campaign("weekly", **WEEKLY), place, workers=0, device="cpu", track=False)
    stronger = WEEKLY | {"attacks": {"pgd": "{kind: pgd, steps: 40, restarts: 3}"}}
    robustkd.run(tiny_campaign("weekly", **stronger), place, workers=0, device="cpu", track=False)
    record = json.loads((place / "record.json").read_text())
    record["runs"][0]["finished"] = (datetime.now(UTC) - timedelta(days=10)).isoformat(timespec="seconds")
    (place / "record.json").write_text(json.dumps(record))
    code = tmp_path_factory.mktemp("code") / "cold.py"
    code.write_text(BROKEN)
    failing = WEEKLY | {"attacks": {"fgsm": "{kind: fgsm}", "cold": f"{{kind: code, code: '{code}:attack'}}"}}
    robustkd.run(tiny_campaign("failing", **failing), runs / "failing", workers=0, device="cpu", track=False)
    for cell in (runs / "cupboards").glob("cells/*/*/transcripts.jsonl"):
        note = json.loads((cell.parent / "meta.json").read_text())
        if (note["defense"], note["attack"]) == ("short-sighted", "extra-words"):
            lines = [json.loads(line) for line in cell.read_text().split("\n") if line]
            lines[2]["verdicts"]["tone"] = not lines[2]["verdicts"]["number"]
            rewritten(cell.parent, "transcripts.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    return runs


def test_each_is_answered_in_three_clicks(node, runs, tmp_path):
    results = robustkd.load(runs / "pictures")
    trained = {item.defense: item for item in results.defenses}
    cells = {(cell.defense, cell.attack): cell.cell_id for cell in results.cells}
    store = Store(runs / "pictures")
    found = {key: samples.read(store.get(cell)).outcome for key, cell in cells.items()}
    best = max(trained.values(), key=lambda item: item.robust_accuracy or 0.0)
    holds = {
        name: np.all([found[name, attack].standing for attack in trained[name].attacks], axis=0) for name in ("plain", "robust")
    }
    row = int(np.flatnonzero(found["plain", "pgd"].success)[0])
    index = int(found["plain", "pgd"].index[row])
    breakers = [attack for attack in ("fgsm", "pgd", "far") if found["plain", attack].success[row]]
    logits = samples.perturbed(store.get(cells["plain", "pgd"]), "logits")[row]
    weekly = robustkd.load(runs / "weekly").defenses[0]
    asked = next(
        Store(runs / "cupboards").get(cell.cell_id)
        for cell in robustkd.load(runs / "cupboards").cells
        if (cell.defense, cell.attack, cell.seed) == ("short-sighted", "extra-words", 0)
    )
    disputed = samples.transcripts(asked)[2]
    of_plain = {"click": "pictures", "near": "plain"}
    questions = {
        f"Which attack broke #{index} of plain?": {
            "steps": [of_plain, {"click": "plain"}, {"find": ["Sample number", str(index)]}],
            "shown": [f"#{index}", ", ".join(breakers)],
        },
        "Was PGD run with restarts?": {
            "steps": [{"click": "weekly"}],
            "shown": ["restarts 3", "steps 40"],
        },
        "Does it hold?": {
            "steps": [{"click": "pictures"}],
            "shown": [answer(results, summary_rows(results))],
        },
        "How sure is that?": {
            "steps": [],
            "shown": [interval(best.ci_low, best.ci_high)],
        },
        "What changed since last week?": {
            "steps": [{"click": "What changed"}, {"click": "the last seven days"}],
            "shown": ["weekly", percent(weekly.robust_accuracy), "+ pgd: {kind: pgd, steps: 40, restarts: 3}"],
        },
        "Which refusals do the judges disagree on?": {
            "steps": [
                {"click": "short-sighted"},
                {"click": "judges disagree"},
                {"click": f"#{samples.read(asked).outcome.index[2]}"},
            ],
            "shown": [f"tone: {'gives' if disputed.verdicts['tone'] else 'does not give'} what is asked for"],
        },
        "Which samples broke the best defense?": {
            "steps": [{"click": best.defense, "near": best.defense}, {"click": "broken"}],
            "shown": [f"broken {int((found[best.defense, 'pgd'].eligible & ~holds[best.defense]).sum())}"],
        },
        "How sure was the model of the wrong class?": {
            "steps": [of_plain, {"click": "plain"}, {"click": f"#{index}"}],
            "shown": [f"{logits[1].max():.2f}", f"{logits[0, logits[1].argmax()]:.2f}"],
        },
        "Which samples hold under one of two defenses alone?": {
            "steps": [{"click": "pictures"}, {"click": "Compare with another defense", "near": "plain"}, {"click": "robust"}],
            "shown": [f"only robust holds {int((holds['robust'] & ~holds['plain']).sum())}", "neither holds"],
        },
        "Why has an attack no number?": {
            "steps": [{"click": "failing"}],
            "shown": ["the oven is cold"],
        },
    }
    assert len(questions) == 10
    (tmp_path / "questions.json").write_text(json.dumps(questions))
    with served(runs) as get:
        told = node("questions.mjs", f"http://{get.place}/", str(tmp_path / "questions.json"))
    wrong = {question: one for question, one in told.items() if one["problem"] or one["missing"] or one["complaints"]}
    assert wrong == {}, json.dumps(wrong, indent=1, ensure_ascii=False)
    assert {question for question, one in told.items() if one["clicks"] > MOST_CLICKS} == set()


def test_what_changed_is_accessible(node, screenshots, runs):
    with served(runs) as get:
        for item in node("accessibility.mjs", f"http://{get.place}/changes", screenshots, "viewer-changes"):
            where = f"{item['width']} px, {item['scheme']}"
            assert item["passes"] > 15, where
            assert item["violations"] == [], where
            assert item["wide"] <= 0, f"{where}: the page scrolls sideways"
            assert item["complaints"] == [], where
