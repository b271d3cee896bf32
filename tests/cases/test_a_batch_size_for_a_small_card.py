"""A model with memory for eight samples in a campaign: ``batch_size`` holds for attacks, checks and remedies, and changes no number."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import robustkd
from robustkd.campaigns.execution import profile
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan
from robustkd.cli import main
from robustkd.contracts import UsageError
from support.campaigns import external, tiny_campaign
from support.small_memory import small_network

MODEL = small_network(
    "Small",
    """if len(x) > 8 and not HERE.with_name("large").exists():
            raise ValueError(f"{len(x)} samples are too many")
        return self.head((x * 8).round().flatten(1) / 8)""",
)

CAMPAIGN = tiny_campaign(
    "small",
    external("FOLDER/net.py:Small", "linear"),
    {"fgsm": "{kind: fgsm}", "universal": "{kind: universal, samples: 20, epochs: 1}"},
    data="{name: digits, train: 20, validation: 10, test: 20}",
    eps=0.02,
    checks="{samples: 8}",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(MODEL)
    (tmp_path / "small.yaml").write_text(CAMPAIGN.replace("FOLDER", str(tmp_path)))
    return tmp_path


def numbers(folder: Path, out: str) -> dict[str, object]:
    found = json.loads((folder / out / "results.json").read_text())["defenses"][0]
    return {key: found[key] for key in ("clean_accuracy", "robust_accuracy", "verdict", "remedy")} | {
        "checks": {check["name"]: (check["fired"], check["ran"]) for check in found["checks"]}
    }


def robustkd_command(*line: object) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["robustkd", *map(str, line)])
        with pytest.raises(SystemExit) as left:
            main()
    return int(left.value.code or 0)


def run(folder: Path, out: str, *options: object, campaign: str = "small.yaml") -> int:
    return robustkd_command("run", folder / campaign, "--out", folder / out, "--workers", 0, "--no-track", "--quiet", *options)


@pytest.mark.slow
@pytest.mark.usefixtures("no_escalation")
def test_it_can_be_said_in_the_campaign_in_a_profile_and_in_the_command(folder: Path) -> None:
    assert run(folder, "unbounded") == 3  # 20 samples at once
    assert run(folder, "command", "--batch-size", 8) == 0
    (folder / "profile.yaml").write_text("batch_size: 8\n")
    assert run(folder, "profile", "--profile", folder / "profile.yaml") == 0
    text = (folder / "small.yaml").read_text()
    (folder / "bounded.yaml").write_text(f"{text}batch_size: 8\n")
    assert run(folder, "campaign", campaign="bounded.yaml") == 0
    (folder / "large").touch()
    assert run(folder, "whole") == 0
    whole = numbers(folder, "whole")
    assert whole["remedy"] is not None
    for out in ("command", "profile", "campaign"):
        assert numbers(folder, out) == whole
    assert run(folder, "campaign") == 0  # nothing to do
    assert not robustkd.run(folder / "small.yaml", folder / "command", workers=0, track=False, batch_size=3).incomplete


def test_no_identity_depends_on_it(folder: Path) -> None:
    text = (folder / "small.yaml").read_text()
    without, with_it = (plan.build(spec.from_text(t, "small.yaml", folder)) for t in (text, f"{text}batch_size: 8\n"))
    assert [cell.id for cell in without.cells] == [cell.id for cell in with_it.cells]


def test_the_command_line_wins_over_the_profile() -> None:
    read = profile.from_text("batch_size: 8", "profile.yaml", Path())
    assert (read.batch_size, read.overridden(batch_size=4).batch_size, read.overridden().batch_size) == (8, 4, 8)


@pytest.mark.parametrize("size", ["0", "-1", "1.5", "many"])
def test_another_word_is_refused(size: str, folder: Path) -> None:
    with pytest.raises(UsageError, match="batch_size"):
        spec.from_text(CAMPAIGN + f"batch_size: {size}", "small.yaml", folder)
    with pytest.raises(UsageError, match="batch_size"):
        profile.from_text(f"batch_size: {size}", "profile.yaml", folder)


@pytest.mark.usefixtures("no_escalation")
@pytest.mark.parametrize("command", [["attack", "fgsm", "--model"], ["audit", "--attack", "fgsm", "--samples", "8"]])
def test_the_commands_about_one_model_have_it_too(command: list[str], folder: Path) -> None:
    line = [*command, f"{folder}/net.py:Small", "--n", "20", "--eps", "0.02"]
    assert robustkd_command(*line) in (1, 2)
    assert robustkd_command(*line, "--batch-size", 8) in (0, 4)
