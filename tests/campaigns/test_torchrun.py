"""A training shared by two processes, from a profile, as a user would."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from robustkd.campaigns.execution import profile
from robustkd.cli import cli
from robustkd.contracts import UsageError
from support.campaigns import tiny_campaign

CAMPAIGN = tiny_campaign(
    "together",
    {
        "robust": "{kind: pgd-at, model: tiny-cnn, epochs: 2, batch_size: 50, inner: {steps: 2}}",
        "free": "{kind: free, model: tiny-cnn, epochs: 1}",
    },
    train=200,
    test=30,
)


@pytest.mark.slow
def test_two_processes_share_a_training_and_say_what_they_cannot_share(tmp_path: Path) -> None:
    (tmp_path / "together.yaml").write_text(CAMPAIGN)
    (tmp_path / "profile.yaml").write_text("training_processes: 2\ntracking: false\nengine: {kind: local, workers: 1}\n")
    alone, together = tmp_path / "alone", tmp_path / "together"
    arguments = ["run", str(tmp_path / "together.yaml"), "--quiet", "--out"]
    assert CliRunner().invoke(cli, [*arguments, str(alone), "--no-track", "--workers", "0"]).exit_code == 0
    ran = CliRunner().invoke(cli, [*arguments, str(together), "--profile", str(tmp_path / "profile.yaml")])
    assert ran.exit_code == 3
    assert "cannot be trained by several processes together" in ran.output
    one, two = (
        {item["defense"]: item for item in json.loads((folder / "results.json").read_text())["defenses"]}
        for folder in (alone, together)
    )
    for ours, theirs in zip(one["robust"]["history"], two["robust"]["history"], strict=True):
        assert theirs["train_loss"] == pytest.approx(ours["train_loss"], abs=1e-4)
    assert two["robust"]["robust_accuracy"] == pytest.approx(one["robust"]["robust_accuracy"], abs=1 / 30)
    assert not list((together / "checkpoints").glob("*/torchrun.json"))


def test_processes_that_share_a_training_choose_their_devices(tmp_path: Path) -> None:
    file = tmp_path / "profile.yaml"
    file.write_text("training_processes: 2\ndevices: [cuda:0, cuda:1]\n")
    with pytest.raises(UsageError, match=r"profile.yaml:1.*training_processes.*choose their own devices"):
        profile.load(file)
