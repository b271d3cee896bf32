"""The networks that implementations meet on, with their test images.

``mnist_lenet5_adv``, ``mnist_lenet5_clean`` and ``cifar10_resnet20`` are trained networks of the measuring data; ``pgd_at`` is trained
here, by robustkd, once; ``resnet18`` and ``wrn-28-10`` have random weights and are there for their cost.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from robustkd import plugins
from robustkd.data import SplitParams, load_splits
from robustkd.targets import load_target
from robustkd.targets.checkpoints import load_weights

HERE = Path(__file__).parent
SHARED = Path(os.environ.get("ROBUSTKD_SHARED_DATA") or HERE.parents[1] / "shared" / "data")
TRAINED = HERE / "runs" / "networks"

EPS = {"mnist_lenet5_adv": 0.3, "mnist_lenet5_clean": 0.3, "cifar10_resnet20": 1 / 255, "pgd_at": 0.1, "resnet18": 8 / 255}
_RANDOM = {"resnet18": ("resnet18", {}), "wrn-28-10": ("wrn", {"depth": 28, "width": 10})}


def there(name: str) -> bool:
    """Whether ``load`` can give it on this machine."""
    return name in _RANDOM or name in ("pgd_at", "digits") or (SHARED / "networks" / f"{name}.safetensors").is_file()


def load(name: str, images: int, device: str = "cpu") -> tuple[nn.Module, Tensor, Tensor]:
    """The network in evaluation mode, (N, C, H, W) test images in [0, 1], and their labels."""
    if name in _RANDOM:
        network, x, y = _random(name, images)
    elif name == "pgd_at":
        network, x, y = _trained(images)
    elif name == "digits":
        network, x, y = _digits(images)
    else:
        network, x, y = _shared(name, images)
    return network.to(device).eval(), x.to(device), y.to(device)


def _built(model: str, params: dict[str, object], shape: tuple[int, ...]) -> nn.Module:
    plugin = plugins.load("models", model)
    network: nn.Module = plugin(plugin.Params(**params)).build(shape, 10)
    return network


def _random(name: str, images: int) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model, params = _RANDOM[name]
    network = _built(model, params, (3, 32, 32)).eval()
    x = torch.rand(images, 3, 32, 32)
    with torch.no_grad():
        y = torch.cat([network(part).argmax(1) for part in x.split(128)])
    return network, x, y


def _shared(name: str, images: int) -> tuple[nn.Module, Tensor, Tensor]:
    card = json.loads((SHARED / "networks" / f"{name}.json").read_text())
    if name.startswith("mnist"):
        network = _built("lenet5", {}, (1, 28, 28))
        data = load_splits("mnist", {"root": str(SHARED / "mnist")}, SplitParams(test=images))
    else:
        network = _built(name.split("_")[1], card["normalisation"], (3, 32, 32))
        data = load_splits("cifar10", {"root": str(SHARED / "cifar10")}, SplitParams(test=images))
    load_weights(network, SHARED / "networks" / f"{name}.safetensors")
    return network, torch.as_tensor(data.test.unit()), torch.as_tensor(data.test.labels).long()


def _trained(images: int) -> tuple[nn.Module, Tensor, Tensor]:
    data = load_splits("fashion-mnist", {}, SplitParams(train=8000, test=images))
    return load_target(train_pgd_at()).module, torch.as_tensor(data.test.unit()), torch.as_tensor(data.test.labels).long()


def train_pgd_at() -> Path:
    """Where the adversarially trained network is, after training it if need be."""
    if found := _finished_training():
        return found
    command = [sys.executable, "-m", "robustkd", "run", str(HERE / "networks.yaml"), "--out", str(TRAINED), "--no-track"]
    subprocess.run([*command, "--quiet"], check=True, stdout=subprocess.DEVNULL)
    if found := _finished_training():
        return found
    raise RuntimeError(f"{TRAINED} holds no trained network")


def _finished_training() -> Path | None:
    metas = TRAINED.glob("cells/*/*/meta.json")
    return next((meta.parent for meta in metas if json.loads(meta.read_text())["kind"] == "train"), None)


def _digits(images: int) -> tuple[nn.Module, Tensor, Tensor]:
    """Trained for a few seconds: for trying the benchmarks themselves."""
    data = load_splits("digits", {}, SplitParams(test=images))
    assert data.train is not None
    torch.manual_seed(0)
    network = _built("tiny-cnn", {}, (1, 8, 8))
    x, y = torch.as_tensor(data.train.unit()), torch.as_tensor(data.train.labels).long()
    optimiser = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimiser.step()
    return network, torch.as_tensor(data.test.unit()), torch.as_tensor(data.test.labels).long()
