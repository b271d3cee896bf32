"""Every plug-in for images, and campaigns of all three modalities, on a second device, with float64 and without, beside the CPU.

Compared are all numbers of ``results.json`` but times, and what comes of each plug-in for images, to 1e-4 of themselves: the devices add
up in another order. Cells' identities are compared exactly. Of the attacks that search by the sign of small differences of the loss none
needs more here, because the second device's kernels are the CPU's.

``test_every_plugin_on_it`` says that none is forgotten.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from robustkd.contracts.devices import accelerator
from second_device.build import environment
from second_device.on_images import names
from support import model_folders
from support.campaigns import tiny_campaign

pytestmark = pytest.mark.slow

NO_FLOAT64 = {"SECOND_DEVICE_NO_FLOAT64": "1"}
KINDS = {"cpu": ("cpu", {}), "second": ("second", {}), "second-without-float64": ("second", NO_FLOAT64)}
HERE = Path(__file__).parent
needs_an_accelerator = pytest.mark.skipif(accelerator() is None, reason="there is no accelerator here")


def python(built: Path, *arguments: str, codes: tuple[int, ...] = (0,), **more: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], env=environment(built, **more), capture_output=True, text=True, check=False
    )
    assert done.returncode in codes, done.stdout + done.stderr
    return done.stdout + done.stderr


def run(built: Path, file: Path, out: Path, *options: str, codes: tuple[int, ...] = (0,), **more: str) -> str:
    options = (str(file), "--workers", "1", "--no-track", "--out", str(out), *options)
    return python(built, "-m", "robustkd", "run", *options, codes=codes, **more)


def differences(a: Any, b: Any, where: str = "") -> Iterator[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(set(a) | set(b)):
            if not key.endswith("seconds") and key != "target_hash":  # the bits of the weights
                yield from differences(a.get(key), b.get(key), f"{where}/{key}")
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for place, pair in enumerate(zip(a, b, strict=True)):
            yield from differences(*pair, f"{where}/{place}")
    elif isinstance(a, float) or isinstance(b, float):
        if a != pytest.approx(b, rel=1e-4, abs=1e-4):
            yield f"{where}: {a}, {b}"
    elif a != b:
        yield f"{where}: {a}, {b}"


@pytest.fixture(scope="session")
def on_images(second_device: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("on-images")
    for kind, (device, more) in KINDS.items():
        python(second_device, "-m", "second_device.on_images", device, str(folder / kind), **more)
    return {kind: json.loads((folder / kind).read_text()) for kind in KINDS}


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("kind", ["second", "second-without-float64"])
def test_a_plugin_for_images_does_what_it_does_on_the_cpu(on_images: dict[str, dict[str, Any]], name: str, kind: str) -> None:
    if isinstance(on_images["cpu"][name], str) and "is not installed" in on_images["cpu"][name]:
        pytest.skip("the package of this attack is not installed")
    assert not isinstance(on_images["cpu"][name], str), on_images["cpu"][name]
    assert not isinstance(on_images[kind][name], str), on_images[kind][name]
    assert list(differences(on_images["cpu"][name], on_images[kind][name])) == []


@pytest.fixture(scope="session")
def on_the_accelerator(second_device: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What ``on_images`` finds on the accelerator that torch has here; its kernels are others than the CPU's."""
    file = tmp_path_factory.mktemp("accelerator") / "found"
    python(second_device, "-m", "second_device.on_images", str(accelerator()), str(file))
    found: dict[str, Any] = json.loads(file.read_text())
    return found


@needs_an_accelerator
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", names())
def test_a_plugin_for_images_runs_on_the_accelerator_that_is_here(
    on_images: dict[str, dict[str, Any]], on_the_accelerator: dict[str, Any], name: str
) -> None:
    """Of four images an attack may break one more or fewer: by the sign of a small gradient, it goes another way. Trainings are in
    bfloat16 there, so of what comes of them only that it is finite is looked at.
    """
    if isinstance(on_images["cpu"][name], str) and "is not installed" in on_images["cpu"][name]:
        pytest.skip("the package of this attack is not installed")
    found = on_the_accelerator[name]
    assert not isinstance(found, str), found
    if name.startswith("attacks/"):
        (broken, _), (expected, _) = found, on_images["cpu"][name]
        assert sum(one != other for one, other in zip(broken, expected, strict=True)) <= 1
    else:
        assert all(math.isfinite(value) for row in found for value in row)


@pytest.fixture(scope="session")
def campaigns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The campaign files of this folder, with the models that they name beside them."""
    folder = tmp_path_factory.mktemp("campaigns")
    for file in HERE.glob("*.yaml"):
        shutil.copy(file, folder)
    model_folders.language_model(folder / "language-model")
    model_folders.stable_diffusion(folder / "drawing")
    model_folders.sdxl(folder / "xl")
    model_folders.safety_checker(folder / "checker")
    model_folders.clip(folder / "clip")
    (folder / "requests.csv").write_text("prompt,evaluation_seed\na church,1\nthe church,2\n")
    return folder


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", [file.stem for file in sorted(HERE.glob("*.yaml"))])
def test_a_campaign_has_the_same_cells_and_numbers(second_device: Path, campaigns: Path, name: str) -> None:
    """The campaign runs in a child process, which has the device as well; run again, nothing is left to do on either device.

    Every check of a model that the campaign asks for is run.
    """
    file, out = campaigns / f"{name}.yaml", campaigns / f"{name}-results"
    for kind, (device, more) in KINDS.items():
        run(second_device, file, out / kind, "--device", device, **more)
    found = {kind: json.loads((out / kind / "results.json").read_text()) for kind in KINDS}
    cells = {kind: {meta.parent.name for meta in (out / kind / "cells").rglob("meta.json")} for kind in KINDS}
    assert cells["cpu"]
    for kind in KINDS:
        assert cells[kind] == cells["cpu"]
        found[kind].pop("environment")
        assert list(differences(found["cpu"], found[kind])) == []
    assert "0 cells to do" in run(second_device, file, out / "cpu", "--device", "second")
    assert not [check for row in found["second"]["defenses"] for check in row["checks"] if not check["ran"]]


@needs_an_accelerator
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", [file.stem for file in sorted(HERE.glob("*.yaml"))])
def test_a_campaign_has_the_same_cells_on_the_accelerator_that_is_here(
    second_device: Path, campaigns: Path, tmp_path: Path, name: str
) -> None:
    cells = {}
    for device in ("cpu", str(accelerator())):
        run(second_device, campaigns / f"{name}.yaml", tmp_path / device, "--device", device)
        cells[device] = {meta.parent.name for meta in (tmp_path / device / "cells").rglob("meta.json")}
    assert cells["cpu"] == cells[str(accelerator())]


def test_a_training_that_is_stopped_on_one_device_goes_on_on_the_other(second_device: Path, tmp_path: Path) -> None:
    file = tmp_path / "long.yaml"
    file.write_text(tiny_campaign(defenses={"plain": "{kind: standard, model: tiny-cnn, epochs: 300, batch_size: 25}"}))
    checkpoints = tmp_path / "moved" / "checkpoints"
    for hours in (
        "0.002",
        "0.004",
        "0.008",
        "0.02",
        "0.08",
    ):  # a busy machine may not have begun to train before the first ends
        run(second_device, file, tmp_path / "moved", "--device", "second", "--max-hours", hours, codes=(3,))
        if checkpoints.is_dir() and any(checkpoints.iterdir()):
            break
    assert list(checkpoints.iterdir())
    run(second_device, file, tmp_path / "moved", "--device", "cpu")
    run(second_device, file, tmp_path / "stayed", "--device", "cpu")
    moved, stayed = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("moved", "stayed"))
    for results in (moved, stayed):
        results.pop("environment")
    assert list(differences(stayed, moved)) == []


def test_what_is_there_is_told_and_taken(second_device: Path) -> None:
    assert "second:0: second, cpu: CPU with" in python(second_device, "-m", "robustkd", "doctor", codes=(0, 1))
    script = "from robustkd.contracts.devices import device_named; print(device_named('auto'))"
    assert python(second_device, "-c", script).endswith("second\n")


def test_where_its_memory_runs_out_fewer_samples_are_attacked_at_once(second_device: Path) -> None:
    script = """
import robustkd, torch
model = torch.nn.Sequential(torch.nn.Conv2d(1, 32, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(1152, 2)).to("second")
print(robustkd.attack("pgd", model, torch.rand(64, 1, 8, 8), torch.zeros(64, dtype=torch.int64), eps=0.1).success.shape)
"""
    said = python(second_device, "-c", script, SECOND_DEVICE_MOST_BYTES="100000")
    assert "memory ran out with 64 samples at once" in said
    assert "(64,)" in said
