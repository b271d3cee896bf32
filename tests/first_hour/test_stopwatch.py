"""From an empty folder with a checkpoint and pictures of one's own to a verdict: how many commands, and how long."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

COLOURS = {"blue": (60, 80, 190), "green": (60, 170, 80), "red": (190, 70, 60), "yellow": (190, 180, 60)}
CAMPAIGN = """\
version: 1
name: mine
data: {name: image-folder, root: pictures, resize: 32, crop: 32}
threat: {norm: linf, eps: 2/255}
defenses:
  mine: {kind: external, code: "torchvision.models:resnet18", kwargs: {num_classes: 4}, weights: checkpoint.pt}
attacks:
  pgd:    {kind: pgd, steps: 20}
  margin: {kind: pgd, steps: 20, loss: margin}
"""


def pictures(folder: Path, each: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy squares of four colours, as PNG files in folders of the classes' names."""
    rng, images, labels = np.random.default_rng(0), [], []
    for label, (name, colour) in enumerate(sorted(COLOURS.items())):
        (folder / "test" / name).mkdir(parents=True)
        for number in range(each):
            noisy = np.clip(rng.normal(colour, 50, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / "test" / name / f"{number}.png")
            images.append(noisy.transpose(2, 0, 1))
            labels.append(label)
    return torch.from_numpy(np.stack(images)).float() / 255, torch.tensor(labels)


def checkpoint(file: Path, x: torch.Tensor, y: torch.Tensor) -> None:
    """A resnet18 as ``DataParallel`` and a training script leave it."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    network = resnet18(num_classes=4)
    optimiser = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(15):  # enough for the running averages of batch normalisation
        for rows in torch.randperm(len(x)).split(32):
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(x[rows]), y[rows]).backward()
            optimiser.step()
    state = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state, "best_acc": np.float64(0.9), "optimizer": optimiser.state_dict()}, file)


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "robustkd", *arguments], cwd=folder, capture_output=True, text=True, timeout=1500, check=False
    )


def spent() -> float:
    """CPU seconds of the commands so far, with their children: what a quiet core takes, whatever else this machine does."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_first_verdict_takes_less_than_five_minutes_and_four_commands(tmp_path: Path) -> None:
    checkpoint(tmp_path / "checkpoint.pt", *pictures(tmp_path / "pictures", 30))
    began = spent()
    audited = command(
        tmp_path,
        *("audit", "torchvision.models:resnet18", "--kwarg", "num_classes=4", "--weights", "checkpoint.pt"),
        *("--data", "image-folder", "--data-set", "root=pictures", "--n", "60", "--eps", "2/255", "--json"),
    )
    assert audited.returncode in (0, 4), audited.stderr
    first = json.loads(audited.stdout)
    assert first["verdict"] in ("credible", "suspect", "not credible")
    assert first["clean_accuracy"] > 0.9
    assert "state_dict.module" in audited.stderr  # says where the weights were found
    (tmp_path / "mine.yaml").write_text(CAMPAIGN)
    ran = command(tmp_path, "run", "mine.yaml", "--no-track", "--quiet")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    seconds = spent() - began
    (row,) = json.loads((tmp_path / "runs/mine/results.json").read_text())["defenses"]
    assert row["clean_accuracy"] > 0.9
    assert seconds < 300, seconds
