"""Where an attack has to reach a class, the checks and the remedies have to reach it too."""

from __future__ import annotations

import json
from pathlib import Path

from support.campaigns import external, tiny_campaign
from support.command_line import CommandLine
from support.nearest_mean import NEAREST_MEAN

CAMPAIGN = tiny_campaign(
    "targeted",
    external("net.py:build", "linear"),
    {"pgd": "{kind: pgd, steps: 20, loss: margin}"},
    data="{name: digits, train: 20, validation: 10, test: 64}",
    threat="{norm: linf, eps: 0.15, goal: targeted}",
    checks="{samples: 64}",
)


def test_a_sample_sent_to_another_class_than_its_goal_is_not_broken(robustkd: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NEAREST_MEAN)
    (tmp_path / "targeted.yaml").write_text(CAMPAIGN)
    robustkd("run", tmp_path / "targeted.yaml", "--out", tmp_path / "out", "--no-track", "--workers", 0)
    (row,) = json.loads((tmp_path / "out" / "results.json").read_text())["defenses"]
    assert 0 < row["robust_accuracy"] < row["clean_accuracy"]
    assert [finding["name"] for finding in row["checks"] if finding["fired"] or not finding.get("ran", True)] == []
    assert row["verdict"] == "credible"
