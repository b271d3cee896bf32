"""Two campaigns attack by what both call ``pgd``, one of them with a step: the leaderboard ranked them as attacked alike."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from support.campaigns import PLAIN, tiny_campaign, transfer_campaign
from support.command_line import CommandLine


@pytest.mark.parametrize(
    ("one", "other", "different"),
    [
        ({"pgd": "{kind: pgd, steps: 10}"}, {"pgd": "{kind: pgd, steps: 1}"}, ["pgd"]),
        ({"a": "{kind: pgd, steps: 3}"}, {"b": "{kind: pgd, steps: 3}"}, []),
        ({"pgd": "{kind: pgd, steps: 3}"}, {"pgd": "{kind: pgd, steps: 3}"}, None),
    ],
)
def test_other_settings_under_one_name(
    robustkd: CommandLine, one: Mapping[str, str], other: Mapping[str, str], different: list[str] | None
) -> None:
    for name, attacks in (("one", one), ("other", other)):
        Path(f"{name}.yaml").write_text(tiny_campaign(name, PLAIN, attacks))
        assert robustkd("run", f"{name}.yaml", "--workers", "0", "--quiet", "--no-track").code == 0
    (board,) = json.loads(robustkd("leaderboard", "runs", "--json").out)
    assert len(board["entries"]) == 2
    assert board["same_attacks"] is (different is None)
    assert board["other_settings"] == (different or [])
    shown = robustkd("leaderboard", "runs").out
    assert ("Not all were attacked alike" in shown) is (different is not None)
    assert ("pgd: not the same under one name" in shown) is bool(different)


def test_another_surrogate_under_one_name(robustkd: CommandLine) -> None:
    for name, epochs in (("one", 1), ("again", 1), ("other", 2)):
        Path(f"{name}.yaml").write_text(transfer_campaign(name, second=epochs, exclude="[{defense: second}]"))
        assert robustkd("run", f"{name}.yaml", "--workers", "0", "--quiet", "--no-track").code == 0
    (alike,) = json.loads(robustkd("leaderboard", "runs/one", "runs/again", "--json").out)
    assert alike["same_attacks"], "the student is made of one attacked network and not of the other, in both campaigns"
    (board,) = json.loads(robustkd("leaderboard", "runs/one", "runs/other", "--json").out)
    assert board["other_settings"] == ["transfer"]
