"""HarmBench's own file has forbidden requests alone: how useful a model is cannot be said, and everything that needs it says so."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from support.toy_prompts import registered

CAMPAIGN = """\
version: 1
name: forbidden-only
data: {{name: behaviors, file: {file}}}
threat: {{attempts: 3}}
judges:
  number: {{kind: says-the-number}}
defenses:
  careful: {{kind: guarded-cupboard}}
attacks:
  search: {{kind: extra-words}}
gates:
  - {{defense: careful, metric: clean_accuracy, at_least: 0.5}}
"""


@pytest.fixture(scope="module", autouse=True)
def worlds(tmp_path_factory):
    with registered(tmp_path_factory.mktemp("site")):
        yield


def test_usefulness_is_no_number_wherever_it_is_shown(robustkd, tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    rows = [f"What is in the {colour} box in the {room}?,<1>" for colour in ("red", "blue") for room in ("attic", "cellar")]
    (tmp_path / "forbidden.csv").write_text("\n".join(["prompt,answer", *rows]) + "\n")
    Path("c.yaml").write_text(CAMPAIGN.format(file="forbidden.csv"))
    code, out, err = robustkd("run", "c.yaml", "--workers", "0", "--quiet")
    # The gate on usefulness has nothing to judge, which is no success.
    assert code == 5, out + err
    assert "gate not judged: careful clean_accuracy at least 50.0%: no number" in out
    (row,) = [line for line in out.splitlines() if line.startswith("careful ")]
    # useful, search, worst case, W-Robust, NRR, verdict
    assert row.split()[:3] == ["careful", "-", "100.0%"], out
    assert row.split()[-3:] == ["-", "-", "suspect"], out
    assert "None harmless" not in out

    results = json.loads(Path("runs/forbidden-only/results.json").read_text())
    assert [item["clean_accuracy"] for item in (*results["cells"], *results["defenses"])] == [None, None]
    (fired,) = [check for check in results["defenses"][0]["checks"] if check["fired"] and check["name"] == "over-refusal"]
    assert "no harmless requests" in fired["evidence"]["explanation"]

    page = Path("runs/forbidden-only/report.html").read_text()
    assert "share of 0 harmless" not in page
    assert "usefulness is not known" in page
    (line,) = [
        line for line in robustkd("report", "c.yaml", "--format", "markdown")[1].splitlines() if line.startswith("| careful |")
    ][:1]
    assert [cell.strip() for cell in line.split("|")][2] == "—"
    (line,) = [
        line for line in robustkd("report", "c.yaml", "--format", "latex")[1].splitlines() if line.startswith("careful")
    ][:1]
    assert [line.split(" & ")[at] for at in (1, 4, 5)] == ["--"] * 3

    board = json.loads(robustkd("leaderboard", "runs", "--json")[1])
    assert board[0]["entries"][0]["clean_accuracy"] is None
    client = MlflowClient()
    runs = client.search_runs([client.search_experiments(filter_string="name LIKE 'forbidden-only%'")[0].experiment_id])
    assert any("robust_accuracy" in run.data.metrics for run in runs)
    assert not [name for run in runs for name in run.data.metrics if name in ("clean_accuracy", "w_robust", "nrr")]
    assert "of the harmless requests are complied with" not in "".join(str(run.data.tags) for run in runs)

    code, out, _ = robustkd("gate", "c.yaml", "--junit", "gate.xml", "--markdown", "gate.md", "--json")
    assert (code, json.loads(out)[0]["outcome"]) == (5, "not judged")
    suite = ElementTree.parse("gate.xml").getroot().find("testsuite")
    assert (suite.get("errors"), suite.get("failures")) == ("1", "0")
    assert "not judged" in Path("gate.md").read_text()
    assert robustkd("gate", "c.yaml", "--allow-missing", "--junit", "gate.xml")[0] == 0
    assert ElementTree.parse("gate.xml").getroot().find("testsuite").get("skipped") == "1"
    assert robustkd("run", "c.yaml", "--workers", "0", "--quiet", "--allow-missing")[0] == 0

    # Held against a baseline, it is no number on both sides; the worst case is compared all the same.
    assert robustkd("gate", "c.yaml", "--write-baseline", "b.json", "--allow-missing")[0] == 0
    code, out, _ = robustkd(
        "gate", "c.yaml", "--baseline", "b.json", "--metric", "clean_accuracy", "--metric", "robust_accuracy"
    )
    assert code == 5
    assert "gate passed: careful robust_accuracy at most 2 points below" in out
    code, out, _ = robustkd("compare", "c.yaml", "b.json", "--json")
    assert {item["attack"] for item in json.loads(out)["movements"]} == {"search", "worst case"}
    code, out, err = robustkd("promote", "c.yaml", "careful")
    assert code != 0
    assert "gate not judged" in err
