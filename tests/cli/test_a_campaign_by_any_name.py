"""Every command that is about a campaign takes its file, its results folder, or the name of that below runs."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

import robustkd
from robustkd.cli import cli
from support.campaigns import tiny_campaign

COMMANDS = {
    "plan": ["plan", "{}"],
    "report": ["report", "{}", "--format", "markdown"],
    "run": ["run", "{}", "--no-track", "--workers", "0", "--device", "cpu"],
    "store list": ["store", "list", "{}"],
    "store verify": ["store", "verify", "{}"],
    "compare": ["compare", "{}", "{}"],
    "gate": ["gate", "{}"],
    "model-card": ["export", "{}", "--format", "model-card", "--defense", "plain", "--out", "{out}"],
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("named")
    gates = "gates:\n  - {defense: plain, at_least: 0.0}\n"
    (home / "file.yaml").write_text(tiny_campaign("named", train=200, test=20) + gates)
    robustkd.run(home / "file.yaml", home / "runs" / "named", workers=0, device="cpu", track=False)
    return home


@pytest.mark.parametrize("command", COMMANDS)
def test_it_is_the_same_campaign(home, monkeypatch, tmp_path, command):
    monkeypatch.chdir(home)
    told = {}
    for number, reference in enumerate(("file.yaml", "runs/named", "named")):
        words = [word.format(reference, out=tmp_path / f"{number}.md") for word in COMMANDS[command]]
        done = CliRunner().invoke(cli, words, catch_exceptions=False)
        told[reference] = done.exit_code
        assert "is a directory" not in done.output.lower()
    assert len(set(told.values())) == 1, told
    assert told["file.yaml"] in (0, 5), told  # 5: a gate on a number without a verdict


def test_what_is_none_is_one_sentence(home, monkeypatch):
    monkeypatch.chdir(home)
    from robustkd.contracts import UsageError

    (home / "empty").mkdir(exist_ok=True)
    for reference, said in (("nothing", "nothing"), ("empty", "holds no campaign.yaml")):
        with pytest.raises(UsageError, match=said):
            cli.main(["plan", reference], standalone_mode=False)
