"""A setting that is misspelt is named, and not the one that is missing because of it; grey images where colour is meant, and colour where
grey is, are named with the key that changes it.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image

import robustkd
from robustkd.contracts import RobustkdError, UsageError

NETS = """
import torch


def convolution(channels):
    layers = torch.nn.Conv2d(channels, 2, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    return torch.nn.Sequential(*layers)


def linear(channels):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64 * channels, 2))
"""


@pytest.fixture(autouse=True)
def networks(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NETS)


@pytest.mark.parametrize(
    ("given", "wrong", "meant"),
    [
        (("--data", "npz", "--data-set", "fil=1"), "--data-set fil", "file"),
        (("--data", "image-folder", "--data-set", "rot=x", "--data-set", "resize=8"), "--data-set rot", "root"),
        (("--data", "stored", "--data-set", "file=x", "--data-set", "sucess=any"), "--data-set sucess", "success"),
        (("--data", "code", "--data-set", "cod=x.py:f"), "--data-set cod", "code"),
        (("--set", "stepps=3"), "stepps", "steps"),
        (("--where", "pach=3", "--where", "place=random"), "pach", "patch"),
        (("--threat", "{rotatoin: 30}"), "rotatoin", "rotation"),
    ],
)
def test_of_a_command(say: Callable[..., tuple[int, str]], given: tuple[str, ...], wrong: str, meant: str) -> None:
    code, told = say("attack", "pgd", "--model", "net.py:linear", "--kwarg", "channels=1", *given)
    assert code == 2
    assert wrong in told
    assert meant in told.replace(wrong, "")
    assert "Field required" not in told
    assert "Traceback" not in told


@pytest.mark.parametrize("group", ["attacks", "checks"])
def test_of_a_plug_in_that_is_tested(say: Callable[..., tuple[int, str]], group: str) -> None:
    name, wrong, meant = {"attacks": ("pgd", "stepps", "steps"), "checks": ("zero-gradient", "sampels", "samples")}[group]
    code, told = say("test-plugin", name, "--set", f"{wrong}=3")
    assert code == 2
    assert f"{wrong}: there is no such parameter" in told
    assert f"'{meant}'" in told


def test_of_a_model_and_of_a_plug_in_in_python(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="fil: there is no such parameter") as raised:
        robustkd.plugins.make("datasets", {"kind": "npz", "fil": "x.npz"})
    assert "'file'" in str(raised.value)
    with pytest.raises(UsageError, match="withd: there is no such parameter"):
        robustkd.load_model("tiny-cnn", weights=tmp_path / "w.pt", kwargs={"withd": 3}, input_shape=(1, 8, 8), num_classes=2)


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def _write(place: Path, images: list[np.ndarray]) -> None:
    files = [_png(pixels) for pixels in images]
    parquet.write_table(arrow.table({"image": [{"bytes": file} for file in files], "label": [0, 1]}), place / "data.parquet")
    with tarfile.open(place / "data.tar", "w") as tar:
        for number, file in enumerate(files):
            for kind, content in (("png", file), ("cls", str(number).encode())):
                member = tarfile.TarInfo(f"{number}.{kind}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    for number, file in enumerate(files):
        (place / "folder" / "test" / f"{number}").mkdir(parents=True)
        (place / "folder" / "test" / f"{number}" / "0.png").write_bytes(file)


@pytest.mark.parametrize("network", ["convolution", "linear"])
@pytest.mark.parametrize(
    "data", [("stored", "file=data.parquet"), ("stored", "file=data.tar"), ("image-folder", "root=folder")]
)
def test_grey_images_that_are_read_in_colour(
    say: Callable[..., tuple[int, str]], tmp_path: Path, network: str, data: tuple[str, str]
) -> None:
    _write(tmp_path, [np.full((8, 8), value, np.uint8) for value in (20, 200)])
    given = ("attack", "fgsm", "--model", f"net.py:{network}", "--data", data[0], "--data-set", data[1])
    code, told = say(*given, "--kwarg", "channels=1")
    assert code != 0
    assert "the model takes grey images: channels: 1" in told
    code, told = say(*given, "--kwarg", "channels=1", "--data-set", "channels=1")
    assert code == 0, told
    code, told = say(*given, "--kwarg", "channels=3", "--data-set", "channels=1")
    assert code != 0
    assert "the model takes colour images: channels: 3" in told


def test_another_size_is_not_taken_for_another_number_of_channels() -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
    with pytest.raises(RobustkdError) as raised:
        robustkd.attack("fgsm", model, torch.rand(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64), eps=0.1)
    assert "channels:" not in str(raised.value)
