"""Layers whose shapes are not known before the first batch: one sentence that says what to do, and the usual number afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import robustkd
from robustkd.cli import cli
from robustkd.contracts import TargetError
from support.campaigns import external, tiny_campaign

MODEL = "from torch import nn\n\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.LazyLinear(10))\n"
SAID = "layers without weights yet"


@pytest.mark.parametrize("call", [robustkd.attack, lambda name, *given, **more: robustkd.audit(*given, attacks=name, **more)])
def test_in_python(call) -> None:
    net = nn.Sequential(nn.Flatten(), nn.LazyLinear(3), nn.LazyBatchNorm1d())
    x, y = torch.rand(6, 1, 4, 4), torch.arange(6) % 3
    with pytest.raises(TargetError, match=SAID) as told:
        call("fgsm", net, x, y, eps=0.1)
    assert told.value.fix == "call the model once on a batch of images before"
    net(x)
    assert call("fgsm", net, x, y, eps=0.1).clean_accuracy is not None


def test_the_command_and_a_campaign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(MODEL)
    done = CliRunner().invoke(cli, ["attack", "fgsm", "--model", "net.py:build", "--n", "10"])
    assert isinstance(done.exception, TargetError)
    assert SAID in str(done.exception)
    (tmp_path / "c.yaml").write_text(tiny_campaign(defenses=external("net.py:build")))
    done = CliRunner().invoke(cli, ["run", "c.yaml", "--no-track", "--workers", "0"])
    assert SAID in " ".join((done.output + done.stderr).split())
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).state_dict(), "weights.pt")  # says the shapes, too
    mine = "{kind: external, code: 'net.py:build', weights: weights.pt}"
    (tmp_path / "c.yaml").write_text(tiny_campaign(defenses={"mine": mine}))
    done = CliRunner().invoke(cli, ["run", "c.yaml", "--no-track", "--workers", "0"])
    assert done.exit_code == 0, done.output + done.stderr
