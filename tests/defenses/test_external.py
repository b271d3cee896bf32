"""Defenses that were trained elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from robustkd import plugins
from robustkd.contracts import Arrays, FitContext, TargetError, ThreatModel
from robustkd.targets import fingerprint, load_target, save_target

CODE = """
import torch
from torch import nn

def build(width=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, width), nn.Dropout(), nn.Linear(width, 4))

def narrow():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))

class Broken(nn.Module):
    def forward(self, x):
        return x.log().flatten(1)[:, :4] * float("nan")

class Raising(nn.Module):
    def forward(self, x):
        raise ValueError("first line\\n" + "x" * 10_000)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(CODE)
    return tmp_path


def context(folder: Path, validation: Arrays | None = None) -> FitContext:
    return FitContext(
        train=None,  # type: ignore[arg-type]
        validation=validation,  # type: ignore[arg-type]
        input_shape=(1, 4, 4),
        num_classes=4,
        threat=ThreatModel(),
        seed=0,
        device=torch.device("cpu"),
        checkpoints=folder,
    )


def external(folder: Path, **params: object):
    plugin = plugins.load("defenses", "external")
    return plugin(plugin.Params.model_validate(params, context={"folder": folder}))


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_code_and_weights_make_a_target_that_can_be_saved_and_loaded(folder: Path, suffix: str) -> None:
    trained = nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.Dropout(), nn.Linear(5, 4))
    weights = folder / f"weights.{suffix}"
    save_file(trained.state_dict(), weights) if suffix == "safetensors" else torch.save(trained.state_dict(), weights)
    defense = external(folder, code="net.py:build", kwargs={"width": 5}, weights=f"weights.{suffix}")
    assert defense.files() == [folder / "net.py", weights]
    target = defense.fit(context(folder))
    images = torch.rand(3, 1, 4, 4)
    assert not target.module.training
    assert torch.equal(target(images), trained.eval()(images))
    (folder / "saved").mkdir()
    save_target(target, folder / "saved")
    again = load_target(folder / "saved", defense.code())
    assert torch.equal(again(images), target(images))
    assert fingerprint(again) == fingerprint(target)


def test_a_registered_architecture_with_weights(folder: Path) -> None:
    architecture = plugins.load("models", "tiny-cnn")
    network = architecture().build((1, 28, 28), 4)
    save_file(network.state_dict(), folder / "tiny.safetensors")
    defense = external(folder, model="tiny-cnn", weights="tiny.safetensors", input_shape=(1, 28, 28))
    target = defense.fit(context(folder))
    assert target.card()["origin"]["model"] == "tiny-cnn"
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in target.module.state_dict().items())


def test_moving_the_campaign_changes_no_parameter(folder: Path) -> None:
    shutil.copytree(folder, folder / "moved")
    here, there = (external(place, code="net.py:build") for place in (folder, folder / "moved"))
    assert here.params.model_dump() == there.params.model_dump()
    assert there.files() == [folder / "moved" / "net.py"]


def test_the_file_of_importable_code_is_found_without_importing_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = folder / "some_package_of_mine"
    (package / "nets").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('planning must not run this')")
    (package / "nets" / "__init__.py").write_text("")
    (package / "nets" / "small.py").write_text(CODE)
    monkeypatch.syspath_prepend(folder)
    assert external(folder, code="some_package_of_mine.nets.small:build").files() == [package / "nets" / "small.py"]
    assert external(folder, code="no_such_package.at_all:build").files() == []


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"code": "net.py:narrow"}, r"returned \(2, 3\) for a batch of 2, expected \(2, 4\)"),
        ({"code": "net.py:Broken"}, "NaN or infinite logits"),
        ({"code": "net.py:Raising"}, "raised ValueError on a batch of shape .* first line"),
        ({"code": "net.py:build", "weights": "absent.pt"}, "there is no weights file"),
        ({"code": "net.py:CODE_OF_NOBODY"}, "has no 'CODE_OF_NOBODY'"),
    ],
)
def test_a_mistake_shows_at_once_and_on_one_screen(folder: Path, params: dict[str, str], message: str) -> None:
    with pytest.raises(Exception, match=message) as caught:
        external(folder, **params).fit(context(folder))
    assert len(str(caught.value)) < 1200


def test_it_is_tried_on_the_datas_images_where_there_are_any(folder: Path) -> None:
    colour = Arrays(np.zeros((3, 3, 4, 4), np.uint8), np.zeros(3, np.int64))
    with pytest.raises(TargetError, match=r"batch of shape \(2, 3, 4, 4\)"):
        external(folder, code="net.py:build").fit(context(folder, colour))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "either code or model"),
        ({"code": "net.py:build", "model": "tiny-cnn"}, "either code or model"),
        ({"model": "tiny-cnn"}, "untrained"),
        ({"code": "../net.py:build"}, "leads out of"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(folder: Path, params: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        external(folder, **params)
