"""A model, or a library below it, prints while a command writes JSON: standard output is the JSON alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from robustkd.cli import cli
from support.campaigns import external, tiny_campaign

MODEL = """
import os
import torch

print("importing")


class Talkative(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.last = torch.nn.Linear(64, 10)

    def forward(self, x):
        print("forward")
        os.write(1, b"written below Python\\n")
        return self.last(x.flatten(1))
"""
COMMANDS = {
    "attack": ["attack", "fgsm", "--model", "talkative.py:Talkative", "--n", "20", "--json"],
    "run": ["run", "tiny.yaml", "--no-track", "--json"],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "talkative.py").write_text(MODEL)
    (tmp_path / "tiny.yaml").write_text(tiny_campaign(defenses=external("talkative.py:Talkative")))
    return tmp_path


@pytest.mark.parametrize("command", [pytest.param("attack", marks=pytest.mark.slow), "run"])
def test_only_json_is_on_standard_output(folder: Path, command: str) -> None:
    argv = [sys.executable, "-m", "robustkd", *COMMANDS[command]]
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)
    assert "importing" in done.stderr
    assert "written below Python" in done.stderr


def test_without_json_prints_are_where_they_were(folder: Path) -> None:
    done = CliRunner().invoke(cli, COMMANDS["attack"][:-1])
    assert "forward\n" in done.stdout
    assert "robust accuracy" in done.stdout


def test_in_one_process_the_stream_is_given_back(folder: Path) -> None:
    before = sys.stdout
    done = CliRunner().invoke(cli, COMMANDS["attack"])
    assert json.loads(done.stdout)["n"] == 20
    assert sys.stdout is before
