"""A checkpoint that holds the constants of its normalisation, for a network that has no place for them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import robustkd
from robustkd.contracts import TargetError
from support.campaigns import external, tiny_campaign

CODE = "import torch\n\n\ndef build():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
OWN = (
    CODE.replace("return ", "net = ") + "    net.register_buffer('std', torch.tensor(0.25), persistent=False)\n    return net\n"
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).state_dict()
    constants = {"normalize.mean": torch.full((1, 1, 1, 1), 0.5), "normalize.std": torch.full((1, 1, 1, 1), 0.25)}
    torch.save(constants | {f"model.{name}": tensor for name, tensor in net.items()}, "net.pt")
    torch.save({"0.means": torch.tensor([127.5])} | {f"1.{name}": tensor for name, tensor in net.items()}, "bytes.pt")
    Path("net.py").write_text(CODE)
    Path("own.py").write_text(OWN)
    return tmp_path


@pytest.mark.parametrize(
    ("weights", "key", "given"),
    [("net.pt", "model", "{mean: [0.5], std: [0.25]}"), ("bytes.pt", "1", "{mean: [0.5], std: [0.00392157]}")],
)
def test_they_are_asked_for_by_their_numbers(here: Path, weights: str, key: str, given: str) -> None:
    with pytest.raises(TargetError, match="constants of a normalisation") as refused:
        robustkd.load_model("net.py:build", weights=weights)
    assert f"normalise: {given}" in str(refused.value.fix)
    assert robustkd.load_model("net.py:build", weights=weights, normalised=True)
    assert robustkd.load_model("net.py:build", weights=weights, weights_key=key)
    assert robustkd.load_model("own.py:build", weights=weights)  # it has its own


def test_a_command_and_a_campaign_take_them(here: Path, say: Callable[..., tuple[int, str]]) -> None:
    given = "{mean: [0.5], std: [0.25]}"
    command = ["attack", "fgsm", "--model", "net.py:build", "--weights", "net.pt", "--n", 8, "--json"]
    code, told = say(*command)
    assert code == 1
    assert given in " ".join(re.split(r"[\s│]+", told))
    code, told = say(*command, "--normalise", given)
    assert code == 0, told
    found = json.JSONDecoder().raw_decode(told)[0]["clean_accuracy"]
    for normalise in ("", f", normalise: {given}"):
        text = tiny_campaign("mine", external("net.py:build", weights="net.pt"), train=None, test=8)
        (here / "mine.yaml").write_text(text.replace("weights: net.pt", f"weights: net.pt{normalise}"))
        code, told = say("run", "mine.yaml", "--no-track", "-q", "--workers", 0)
        assert (code == 0) == bool(normalise), told
    (cell,) = json.loads((here / "runs/mine/results.json").read_text())["cells"]
    assert cell["clean_accuracy"] == pytest.approx(found)
