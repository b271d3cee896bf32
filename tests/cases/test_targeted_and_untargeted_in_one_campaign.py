"""Several threat models beside the campaign's own that print alike: each has a number of its own."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from robustkd.cli import cli
from support.campaigns import tiny_campaign

ATTACKS = {
    "own": "{kind: fgsm}",
    "small": "{kind: pgd, steps: 5, threat: {norm: linf, eps: 0.12340}}",
    "nearly": "{kind: pgd, steps: 5, threat: {norm: linf, eps: 0.123401}}",
    "aimed": "{kind: pgd, steps: 5, threat: {norm: linf, eps: 0.1234, goal: targeted}}",
    "same": "{kind: pgd, steps: 5, threat: {norm: linf, eps: 0.1, goal: targeted}}",
}


def test_each_threat_model_has_its_number(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(tiny_campaign(attacks=ATTACKS, train=300, test=60))
    done = CliRunner().invoke(cli, ["run", "tiny.yaml", "--no-track", "-q", "--workers", "0"])
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "runs/tiny/results.json").read_text())
    accuracy = {cell["attack"]: cell["robust_accuracy"] for cell in found["cells"]}
    (trained,) = found["defenses"]
    assert trained["attacks"] == ["own"]
    assert trained["other_threats"] == {
        "linf <= 0.1234, untargeted": accuracy["small"],
        "linf <= 0.123401, untargeted": accuracy["nearly"],
        "linf <= 0.1234, targeted": accuracy["aimed"],
        "linf <= 0.1, targeted": accuracy["same"],
    }
    assert "same: linf eps 0.1, targeted" in " ".join(done.output.split())
    page = (tmp_path / "runs/tiny/report.html").read_text()
    assert "targeted" in page
