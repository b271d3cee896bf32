"""A model's own error is one sentence with its line in the user's file; the traceback comes on demand."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import robustkd
from robustkd.cli import main
from robustkd.contracts import RobustkdError
from support.campaigns import external, tiny_campaign

MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x):
        h = x.flatten(1)
        return self.layer(h + torch.zeros(63))

def build():
    return Net()

def unbuilt():
    return {}["weights"]
"""
FORWARD, BUILD = 12, 18
CAMPAIGN = tiny_campaign("small", external("m.py:build"), {"pgd": "{kind: pgd, steps: 2}"}, train=None, test=8)
TOLD = f"m.py:{FORWARD}: The size of tensor a"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "m.py").write_text(MODEL)
    (tmp_path / "small.yaml").write_text(CAMPAIGN)
    return tmp_path


@pytest.fixture
def said(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """``said("audit", "m.py:build")``: what a command that fails has written."""
    monkeypatch.chdir(folder)

    def call(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["robustkd", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code
        written = capsys.readouterr()
        return " ".join((written.out + written.err).split())

    return call


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (("attack", "pgd", "--model", "m.py:build"), TOLD),
        (("audit", "m.py:build"), TOLD),
        (("attack", "pgd", "--model", "m.py:unbuilt"), f"m.py:{BUILD}: 'weights'"),
    ],
)
def test_a_command_names_the_line(said: Callable[..., str], command: tuple[str, ...], line: str) -> None:
    told = said(*command, "--data", "digits", "--n", "8", "--eps", "0.1")
    assert line in told
    assert "Traceback" not in told


def test_a_cell_names_the_line(said: Callable[..., str]) -> None:
    told = said("run", "small.yaml", "--out", "out", "--no-track", "--workers", "1")
    assert f"m.py:{FORWARD}" in told
    assert "Traceback" not in told


def test_the_traceback_comes_on_demand(said: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUSTKD_TRACEBACK", "1")
    command = ("attack", "pgd", "--model", "m.py:build", "--data", "digits", "--n", "8", "--eps", "0.1")
    told = said(*command)
    assert "Traceback (most recent call last)" in told
    assert "return self.layer(h + torch.zeros(63))" in told
    assert TOLD in told


@pytest.mark.parametrize("call", ["attack", "evaluate"])
def test_python_is_told_the_line(folder: Path, call: str) -> None:
    spec = importlib.util.spec_from_file_location("mine", folder / "m.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    x, y = np.random.default_rng(0).random((4, 1, 8, 8), np.float32), np.arange(4)
    with pytest.raises(RobustkdError, match=TOLD):
        getattr(robustkd, call)(*(["pgd"] if call == "attack" else []), module.build(), x, y, eps=0.1)


def test_the_line_is_the_users_where_an_installed_package_raises_below_it(said: Callable[..., str], folder: Path) -> None:
    (folder / "a.py").write_text("def attack(model, x, y, eps):\n    return model(x).reshape(-1, 7, 13)\n")
    good = MODEL.replace("h + torch.zeros(63)", "h")
    (folder / "m.py").write_text(good)
    told = said(
        "attack",
        "code",
        "--set",
        "code=a.py:attack",
        "--model",
        "m.py:build",
        "--data",
        "digits",
        "--n",
        "8",
        "--eps",
        "0.1",
    )
    assert "a.py:2: shape '[-1, 7, 13]' is invalid" in told
