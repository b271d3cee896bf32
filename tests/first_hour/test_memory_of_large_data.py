"""Nothing larger than a shard is in memory: a training and an attack on 50,000 images take no more of it than on 2,000.

``python tests/first_hour/test_memory_of_large_data.py 10000`` measures it by hand, with so many images.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

FEW = 2000
MANY = 50_000
THIN = "{kind: standard, model: tiny-cnn, model_params: {width: 4}, epochs: 1, batch_size: 64, lr: 0.01, augment: crop-flip}"
RESNET50 = '{kind: external, code: "torchvision.models:resnet50", kwargs: {num_classes: 2}}'
CAMPAIGN = """
version: 1
name: large
data: {name: image-folder, root: images, validation: 200%s}
threat: {norm: linf, eps: 4/255}
defenses:
  one: %s
attacks:
  fgsm: {kind: fgsm}
checks: none
"""


def write_images(root: Path, count: int, distinct: int = 16) -> None:
    """``count`` JPEG files of 224 x 224 pixels in two classes for each part; they are links to a few that differ."""
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for level, name in enumerate("ab"):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count // 2):
                file = folder / f"{number:06d}.jpg"
                if number < distinct:
                    coarse = rng.integers(60 * level, 60 * level + 190, (16, 16, 3), np.uint8)
                    Image.fromarray(coarse).resize((224, 224)).save(file)
                else:
                    os.link(folder / f"{number % distinct:06d}.jpg", file)


def peak(folder: Path, test: str, out: str, defense: str = THIN) -> tuple[float, int]:
    """MiB of the largest process of ``robustkd run``, and how many samples it attacked."""
    (folder / "large.yaml").write_text(CAMPAIGN % (test, defense))
    code = (
        "import resource, subprocess, sys; "
        "done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL); "
        "print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    command = [sys.executable, "-m", "robustkd", "run", folder / "large.yaml", "--out", folder / out, "--workers", "1"]
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}
    line = [sys.executable, "-c", code, *map(str, command), "--no-track", "--quiet"]
    said = subprocess.run(line, capture_output=True, text=True, check=True, env=environment)
    status, kilobytes = map(int, said.stdout.split())
    assert status == 0, said.stderr
    return kilobytes / 1024, json.loads((folder / out / "results.json").read_text())["defenses"][0]["n"]


def peaks(folder: Path, count: int) -> tuple[float, float]:
    """With a few test samples, and with all of ``count``."""
    write_images(folder / "images", count)
    few, n = peak(folder, ", test: 64", "few")
    assert n == 64
    every, n = peak(folder, "", "all")
    assert n == count
    return few, every


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_fifty_thousand_images_take_the_memory_of_two_thousand(tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    (tmp_path / "fifty").mkdir()
    two, fifty = peaks(tmp_path / "two", FEW), peaks(tmp_path / "fifty", MANY)
    for less, more in zip(two, fifty, strict=True):
        assert more < 2048
        assert more < less + 100


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_a_large_network_takes_fewer_images_at_once(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 512)
    mebibytes, n = peak(tmp_path, "", "out", RESNET50)
    assert n == 512
    assert mebibytes < 2048


if __name__ == "__main__":
    for count in (FEW, int(sys.argv[1])):
        with tempfile.TemporaryDirectory() as folder:
            print(count, *(f"{mebibytes:.0f} MiB" for mebibytes in peaks(Path(folder), count)), flush=True)
