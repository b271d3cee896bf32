"""The record of a run, and the same campaign from it: through the command line, for real."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from robustkd.plugins import load
from support.campaigns import PLAIN, tiny_campaign

TINY = tiny_campaign(test=40, defenses={**PLAIN, "mine": "{kind: external, code: 'models/net.py:build'}"})
NET = """\
import torch
def build():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
"""
RUN = ("--no-track", "--workers", "0", "--device", "cpu", "--quiet")


@pytest.fixture
def robustkd(robustkd, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "code" / "models").mkdir(parents=True)
    (tmp_path / "code" / "tiny.yaml").write_text(TINY)
    (tmp_path / "code" / "models" / "net.py").write_text(NET)
    git(tmp_path / "code", "init", "--quiet")
    git(tmp_path / "code", "add", ".")
    git(tmp_path / "code", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "x")
    return robustkd


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", folder, *arguments], check=True, capture_output=True, text=True).stdout.strip()


def recorded(tmp_path: Path) -> list[dict]:
    return json.loads((tmp_path / "runs" / "tiny" / "record.json").read_text())["runs"]


def test_a_run_is_recorded_and_comes_out_the_same_elsewhere(robustkd, tmp_path):
    profile = tmp_path / "profile.yaml"
    profile.write_text("engine: {kind: inline}\ndevices: [cpu]\n")
    assert robustkd("run", "code/tiny.yaml", *RUN)[0] == 0
    (entry,) = recorded(tmp_path)
    assert entry["git"] == {"commit": git(Path("code"), "rev-parse", "HEAD"), "branch": entry["git"]["branch"], "dirty": False}
    assert entry["text"] == TINY
    assert entry["command"][1:3] == ["run", "code/tiny.yaml"]
    assert {"torch", "robustkd", "numpy"} <= set(entry["packages"])
    assert entry["plugins"]["attacks/fgsm"] == {
        "version": load("attacks", "fgsm").version,
        "package": f"robustkd {entry['packages']['robustkd']}",
    }
    assert set(entry["targets"]) == {"plain/0", "mine/0"}
    assert list(entry["files"]) == ["models/net.py"]
    assert (entry["seeds"], entry["complete"], entry["data"]["n"]) == ([0], True, 40)

    code, out, err = robustkd("reproduce", "runs/tiny", "--out", "again", "--run", "--profile", profile, "--json")
    assert code == 0, err
    told = json.loads(out)
    # Here is a folder without git; nothing else differs.
    assert {item["what"] for item in told["differences"]} == {"git commit", "git branch", "git dirty"}
    assert len(told["numbers"]) == 6
    assert all(number["recorded"] == number["here"] for number in told["numbers"])
    assert (tmp_path / "again" / "models" / "net.py").read_text() == NET

    # Another file, another package and another number are all seen.
    (tmp_path / "code" / "models" / "net.py").write_text(NET.replace("seed(0)", "seed(1)"))
    record = {"version": 1, "runs": [entry | {"packages": entry["packages"] | {"torch": "1.0", "gone": "2"}}]}
    (tmp_path / "runs" / "tiny" / "record.json").write_text(json.dumps(record))
    code, out, _ = robustkd("reproduce", "runs/tiny", "--out", "changed", "--run", "--profile", profile)
    assert code == 1
    assert "package torch: 1.0 -> " in out
    assert "package gone: 2 -> not here" in out
    assert f"file models/net.py: {entry['files']['models/net.py'][:12]} -> " in out
    assert "of 6 numbers came out the same" in out
    moved = out.partition("came out the same")[2]
    assert ("  mine " in moved, "plain" in moved) == (True, False)

    shutil.rmtree(tmp_path / "code")
    out = robustkd("reproduce", "runs/tiny", "--out", "without")[1]
    assert f"file models/net.py: {entry['files']['models/net.py'][:12]} -> not here" in out


def test_what_cannot_be_reproduced_is_said(robustkd, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "empty").mkdir()
    for name, told in (("empty", "holds no record of a run"), ("0123abc", "MLFLOW_TRACKING_URI")):
        code, _, err = robustkd("reproduce", name)
        assert (code, told in err) == (2, True), err
    (tmp_path / "empty" / "record.json").write_text('{"version": 1, "runs": [{"text": "x"}]}')
    code, _, err = robustkd("reproduce", "empty")
    assert (code, "another version of robustkd" in err) == (2, True)
