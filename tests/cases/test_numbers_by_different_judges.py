"""What another judge decides is another quantity: it is not compared, gated or ranked as the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.command_line import CommandLine
from support.toy_prompts import CUPBOARD, registered


@pytest.fixture
def _worlds(tmp_path: Path) -> Iterator[None]:
    with registered(tmp_path / "site"):
        yield


@pytest.mark.usefixtures("_worlds")
def test_another_deciding_judge(robustkd: CommandLine) -> None:
    world = CUPBOARD.replace("gates:\n  - {defense: careful, at_least: 0.1}\n", "").replace(
        "{kind: extra-words}", "{kind: first-words}"
    )
    mine = world.replace("threat:", "judges: {mine: {kind: does-not-refuse}}\nthreat:")
    for name, text in (("theirs", world), ("mine", mine), ("again", world)):
        Path(f"{name}.yaml").write_text(text.replace("name: cupboards", f"name: {name}") + "checks: none\n")
        assert robustkd("run", f"{name}.yaml", "--workers", "0", "--quiet", "--no-track").code == 0
    robustkd("gate", "theirs", "--write-baseline", "base.json")
    for was in ("base.json", "theirs"):
        assert "other quantities" in robustkd("compare", was, "mine").out
        assert "other quantities" not in robustkd("compare", was, "again").out
        told = robustkd("gate", "mine", "--baseline", was, "--metric", "robust_accuracy", "--metric", "clean_accuracy")
        assert told.code == 5
        assert told.out.count("not judged") == 8, "four defenses, two metrics"
        assert robustkd("gate", "again", "--baseline", was).code == 0
    boards = json.loads(robustkd("leaderboard", "runs", "--json").out)
    assert sorted(sorted({entry["campaign"] for entry in board["entries"]}) for board in boards) == [
        ["again", "theirs"],
        ["mine"],
    ]
    # What was written before judges were noted is judged as it was.
    old = json.loads(Path("base.json").read_text())
    old.pop("judges", None)
    Path("old.json").write_text(json.dumps(old))
    assert robustkd("gate", "mine", "--baseline", "old.json").code != 5
