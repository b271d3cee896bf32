"""A user's own checkpoint, as his training wrote it, is attacked with one line."""

from __future__ import annotations

import argparse
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import robustkd
from robustkd.cli import cli
from robustkd.contracts import TargetError
from support.first_hour import build_network

CODE = """
from torch import nn


def build(width=6):
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * width * width, 10))
"""
State = dict[str, Tensor]
KEYS = ("net", "model", "state_dict", "model_state_dict", "ema", "run.best.weights")
PREFIXES = ("", "module.", "_orig_mod.", "model.", "backbone.", "module.model.")


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return build_network(CODE)


@pytest.fixture
def state(network: nn.Module) -> State:
    return OrderedDict(network.state_dict())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_model.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def written(holds: object) -> str:
    torch.save(holds, "checkpoint.pt")
    return "checkpoint.pt"


def loaded(file: str, **more: Any) -> nn.Module:
    model = robustkd.load_model("my_model.py:build", weights=file, **more)
    assert isinstance(model, nn.Module)
    return model


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_each_key_and_each_prefix(
    key: str, prefix: str, folder: Path, network: nn.Module, state: State, images: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    holds: dict[str, Any] = prefixed(state, prefix)
    for part in reversed(key.split(".")):
        holds = {
            part: holds,
            "epoch": 3,
            "optimizer": {"state": {0: {"exp_avg": torch.rand(4, 1, 3, 3)}}, "param_groups": [{}]},
        }
    assert torch.equal(loaded(written(holds))(images), network(images))
    assert len(caplog.records) == 1
    assert f"the weights are those under {key}" in caplog.text


@pytest.mark.parametrize(
    "around",
    [
        lambda state: {"net": state, "best_prec1": np.float64(0.93), "history": np.arange(4.0), "acc": np.int64(3)},
        lambda state: {"net": state, "args": argparse.Namespace(lr=0.1), "path": Path("runs"), "when": {"seed": {1, 2}}},
        lambda state: (state, {"epoch": 3}),
        lambda state: prefixed(state, "1.") | {"0.mean": torch.zeros(1), "0.std": torch.ones(1)},
        lambda state: prefixed(state, "module.") | {"n_averaged": torch.tensor(7)},
        lambda state: {name.replace("0.", "0._orig_mod."): tensor for name, tensor in state.items()},
        lambda state: {name if name.startswith("4") else f"backbone.{name}": tensor for name, tensor in state.items()},
        lambda state: {"encoder": state, "teacher": {"0.weight": torch.rand(9, 9)}},
    ],
    ids=[
        "numpy scalars", "objects of classes", "tuple", "normalise and net", "averaged", "partly compiled", "head apart", "teacher"
    ],
)  # fmt: skip
def test_what_is_beside_the_weights_is_no_obstacle(
    around: Any, folder: Path, network: nn.Module, state: State, images: Tensor
) -> None:
    assert torch.equal(loaded(written(around(state)))(images), network(images))


def test_a_file_from_before_torch_1_6(folder: Path, network: nn.Module, state: State, images: Tensor) -> None:
    torch.save({"net": state, "best": np.float64(0.9)}, "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(loaded("old.pth")(images), network(images))


def test_weights_of_the_plain_network_for_a_wrapper_that_normalises(
    folder: Path, network: nn.Module, state: State, images: Tensor
) -> None:
    (folder / "wrapped.py").write_text(
        CODE + "\n\nimport torch\n\n\n"
        "class Wrapped(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.register_buffer('mean', torch.tensor(0.5))\n        self.net = build()\n\n"
        "    def forward(self, x):\n        return self.net(x - self.mean)\n"
    )
    model = robustkd.load_model("wrapped.py:Wrapped", weights=written({"state_dict": prefixed(state, "module.")}))
    assert torch.equal(model(images), network(images - 0.5))


def test_averaged_weights_are_taken_and_the_others_can_be_chosen(
    folder: Path, network: nn.Module, state: State, images: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    other = {name: (tensor + 1).half() for name, tensor in state.items()}
    file = written({"model": prefixed(other, "module."), "model_ema": state})
    assert torch.equal(loaded(file)(images), network(images))
    assert "those under model_ema; model.module would fit as well (weights_key chooses)" in caplog.text
    assert loaded(file, weights_key="model").state_dict()["4.bias"].equal(other["4.bias"].float())
    with pytest.raises(TargetError, match=r"no weights under 'best'\n  fix: its names begin with model, model_ema"):
        loaded(file, weights_key="best")


def test_two_networks_of_one_shape_are_not_guessed_between(folder: Path, network: nn.Module, state: State) -> None:
    file = written(prefixed(state, "student.") | {f"teacher.{name}": tensor + 1 for name, tensor in state.items()})
    with pytest.raises(
        TargetError, match=r"several weights that fit the network: student, teacher\n  fix: choose it: weights_key"
    ):
        loaded(file)
    assert loaded(file, weights_key="teacher").state_dict()["4.bias"].equal(state["4.bias"] + 1)


def test_a_part_of_a_larger_network_is_no_network(folder: Path) -> None:
    (folder / "head.py").write_text("from torch import nn\n\n\ndef build():\n    return nn.Linear(8, 10)\n")
    whole = nn.ModuleDict({"conv": nn.Conv2d(1, 4, 3), "norm": nn.BatchNorm2d(4), "fc": nn.Linear(8, 10)})
    with pytest.raises(TargetError, match=r"(?s)has unknown conv\.bias, .*weights_key: fc"):
        robustkd.load_model("head.py:build", weights=written(whole.state_dict()))
    robustkd.load_model("head.py:build", weights="checkpoint.pt", weights_key="fc")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {"net": prefixed({k: v for k, v in state.items() if k != "4.bias"}, "module.")}, "it lacks 4.bias"),
        (lambda state: {"net": {**state, "5.weight": torch.zeros(1)}}, "it has unknown 5.weight"),
        (lambda state: prefixed({**state, "4.bias": torch.zeros(7)}, "model."), "it differs in shape at 4.bias"),
        (lambda state: {"net": {"layer.gamma": torch.zeros(1)}}, "it lacks 0.bias, 0.weight, 1.bias and .* more"),
        (lambda state: {"epoch": 3, "acc": np.float64(1)}, "holds no state_dict"),
        (lambda state: {"shadow": list(state.values())}, "it lacks 0.bias"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change: Any, message: str, folder: Path, state: State) -> None:
    with pytest.raises(TargetError, match=message):
        loaded(written(change(state)))


def test_a_whole_pickled_network_is_refused_and_nothing_of_it_is_run(folder: Path, network: nn.Module, state: State) -> None:
    with pytest.raises(
        TargetError, match=r"(?s)pickled objects \(torch.nn.modules.activation.ReLU, .*fix: save its state_dict"
    ):
        loaded(written(network))

    class Evil:
        def __reduce__(self) -> Any:
            return exec, ("open('this-ran', 'w')",)

    loaded(written({"net": state, "beside": Evil()}))
    with pytest.raises(TargetError, match=r"lacks 4\.bias"):
        loaded(written({"net": {**state, "4.bias": Evil()}}))
    assert not Path("this-ran").exists()


def test_the_command_and_the_campaign(folder: Path, network: nn.Module, state: State) -> None:
    from robustkd.data import SplitParams, load_splits

    test = load_splits("digits", {}, SplitParams(test=20)).test
    right = float((network(torch.from_numpy(test.unit())).argmax(1).numpy() == test.labels).mean())
    written({"model": {name: tensor * 0 for name, tensor in state.items()}, "ema": prefixed(state, "module.")})
    line = "attack fgsm --model my_model.py:build --weights checkpoint.pt --weights-key ema --n 20 --json"
    done = CliRunner().invoke(cli, line.split())
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["clean_accuracy"] == pytest.approx(right)
    mine = {"kind": "external", "code": "my_model.py:build", "weights": "checkpoint.pt"}
    campaign = {
        "version": 1, "name": "c", "data": {"name": "digits", "test": 20}, "threat": {"norm": "linf", "eps": 0.1},
        "defenses": {"mine": mine, "other": {**mine, "weights_key": "model"}}, "attacks": {"fgsm": {"kind": "fgsm"}}, "checks": "none",
    }  # fmt: skip
    table = robustkd.run(campaign, workers=0, track=False).to_dataframe()
    clean = dict(zip(table["defense"], table["clean_accuracy"], strict=True))
    assert clean == {"mine": pytest.approx(right), "other": pytest.approx((test.labels == 0).mean())}
