"""Two campaigns attack by what both call ``pgd``, one of them with a step: the leaderboard ranked them as attacked alike."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from support.campaigns import PLAIN, tiny_campaign
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
    network = "model: tiny-cnn, batch_size: 32"
    for name, epochs in (("one", 1), ("again", 1), ("other", 2)):
        text = tiny_campaign(
            name,
            {
                "plain": f"{{kind: standard, {network}, epochs: 1}}",
                "second": f"{{kind: standard, {network}, epochs: {epochs}, replica: 1}}",
                "student": "{kind: kd, teacher: plain, student: tiny-cnn, epochs: 1, batch_size: 32, lr: 0.05}",
            },
            {"transfer": "{kind: transfer, surrogates: [second, student], attacks: [{kind: fgsm}]}"},
            matrix="{exclude: [{defense: second}]}",
        )
        Path(f"{name}.yaml").write_text(text)
        assert robustkd("run", f"{name}.yaml", "--workers", "0", "--quiet", "--no-track").code == 0
    (alike,) = json.loads(robustkd("leaderboard", "runs/one", "runs/again", "--json").out)
    assert alike["same_attacks"], "the student is made of one attacked network and not of the other, in both campaigns"
    (board,) = json.loads(robustkd("leaderboard", "runs/one", "runs/other", "--json").out)
    assert board["other_settings"] == ["transfer"]
