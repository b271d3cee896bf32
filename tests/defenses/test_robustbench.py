"""RobustBench's own loading code, on a checkpoint that the test makes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from robustkd import plugins
from robustkd.contracts import FitContext, PluginError, TargetError, ThreatModel, UsageError
from robustkd.integrations import robustbench as integration
from robustkd.targets import load_target, save_target

SMALLEST = "Ding2020MMA"  # a WRN-28-4: 5.8 M parameters


@pytest.fixture(scope="module")
def zoo():
    pytest.importorskip("timm", reason="robustbench is not installed: robustkd doctor --fix")
    try:
        return integration.import_robustbench()
    except PluginError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def model_dir(zoo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    place = folder / "cifar10" / "Linf" / f"{SMALLEST}.pt"
    place.parent.mkdir(parents=True)
    torch.manual_seed(0)
    state = integration.build(SMALLEST).state_dict()
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, place)
    return folder


def context(folder: Path, num_classes: int = 10) -> FitContext:
    return FitContext(
        train=None,  # type: ignore[arg-type]
        validation=None,  # type: ignore[arg-type]
        input_shape=(3, 32, 32),
        num_classes=num_classes,
        threat=ThreatModel(),
        seed=0,
        device=torch.device("cpu"),
        checkpoints=folder,
    )


def robustbench(**params: object):
    plugin = plugins.load("defenses", "robustbench")
    return plugin(plugin.Params(**params))


def test_a_local_checkpoint_becomes_a_target_that_can_be_saved_and_loaded(model_dir: Path, tmp_path: Path) -> None:
    defense = robustbench(model_id=SMALLEST, model_dir=model_dir)
    checkpoint = model_dir / "cifar10" / "Linf" / f"{SMALLEST}.pt"
    assert defense.files() == [checkpoint]
    assert "model_dir" not in defense.params.model_dump()  # the place of a file is no part of what it is
    target = defense.fit(context(tmp_path))
    stored = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(value, stored[f"module.{key}"]) for key, value in target.module.state_dict().items())
    save_target(target, tmp_path)
    again = load_target(tmp_path)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(images), target(images))


def test_the_zoos_downloads_are_identified_by_name() -> None:
    assert robustbench(model_id=SMALLEST).files() == []


def test_mistakes_are_said(zoo, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no model 'Ding2020MMMA'") as caught:
        robustbench(model_id="Ding2020MMMA", model_dir=model_dir).fit(context(tmp_path))
    assert caught.value.fix == "did you mean 'Ding2020MMA'?"
    with pytest.raises(TargetError, match="the data have 4"):
        robustbench(model_id=SMALLEST, model_dir=model_dir).fit(context(tmp_path, num_classes=4))
    monkeypatch.setattr("robustbench.utils.download_gdrive_new", offline)
    with pytest.raises(TargetError, match="no route to host") as missing:
        robustbench(model_id=SMALLEST, model_dir=tmp_path).fit(context(tmp_path))
    assert str(tmp_path / "cifar10" / "Linf" / f"{SMALLEST}.pt") in str(missing.value.fix)


def offline(*arguments: object) -> None:
    raise OSError("no route to host")


def test_what_robustbench_is_lent_is_taken_back(zoo) -> None:
    from robustbench.eval import AutoAttack

    for name in ("autoattack", "autoattack.state"):
        assert name not in sys.modules
    from robustkd.integrations.autoattack import AutoAttack as Ours

    assert AutoAttack is Ours or AutoAttack.__module__.startswith("autoattack")


def test_the_resources_that_its_loaders_ask_for_are_found(zoo) -> None:
    loaders = sys.modules["robustbench.loaders"]
    found = loaders.pkg_resources.resource_filename("robustbench.loaders", "helper_files/imagenet_test_image_ids.txt")
    assert Path(found).is_file()


def test_a_real_autoattack_is_left_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    real = type(sys)("autoattack")
    monkeypatch.setitem(sys.modules, "autoattack", real)
    assert "autoattack" not in integration._stand_ins()


def test_a_missing_robustbench_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "robustbench", None)
    with pytest.raises(PluginError, match="robustbench cannot be imported") as caught:
        integration.import_robustbench()
    assert caught.value.fix == "robustkd doctor --fix"
