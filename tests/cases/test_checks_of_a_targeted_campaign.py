"""Where an attack has to reach a class, the checks and the remedies have to reach it too."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from robustkd.cli import main
from support.nearest_mean import NEAREST_MEAN

CAMPAIGN = """
version: 1
name: targeted
data: {name: digits, train: 20, validation: 10, test: 64}
threat: {norm: linf, eps: 0.15, goal: targeted}
defenses:
  linear: {kind: external, code: "net.py:build"}
attacks:
  pgd: {kind: pgd, steps: 20, loss: margin}
checks: {samples: 64}
"""


def test_a_sample_sent_to_another_class_than_its_goal_is_not_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net.py").write_text(NEAREST_MEAN)
    (tmp_path / "targeted.yaml").write_text(CAMPAIGN)
    line = ["run", tmp_path / "targeted.yaml", "--out", tmp_path / "out", "--no-track", "--workers", 0]
    monkeypatch.setattr(sys, "argv", ["robustkd", *map(str, line)])
    with pytest.raises(SystemExit):
        main()
    (row,) = json.loads((tmp_path / "out" / "results.json").read_text())["defenses"]
    assert 0 < row["robust_accuracy"] < row["clean_accuracy"]
    assert [finding["name"] for finding in row["checks"] if finding["fired"] or not finding.get("ran", True)] == []
    assert row["verdict"] == "credible"
