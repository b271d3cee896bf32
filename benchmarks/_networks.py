"""The networks that implementations meet on, with their test images.

``mnist_lenet5_adv``, ``mnist_lenet5_clean`` and ``cifar10_resnet20`` are trained networks of the measuring data. ``pgd_at``,
``fgsm_at`` and ``mnist_large_eps`` are trained here, by robustkd, once: the last two with a single step and at a large eps, so that their
gradients mislead, the first one's a single step alone. ``digits_100`` (by PGD) and ``digits_1000`` (plainly) are trained on two and three
digits of MNIST in a row, and have as many classes. ``mnist_pair`` answers with the mean probability of the first two. ``resnet18`` and
``wrn-28-10`` have random weights and are there for their cost.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from robustkd import plugins
from robustkd.data import SplitParams, load_splits
from robustkd.targets import load_target
from robustkd.targets.checkpoints import load_weights
from robustkd.targets.ensemble import log_mean_probability
from robustkd.targets.modules import MeanProbability

HERE = Path(__file__).parent
SHARED = Path(os.environ.get("ROBUSTKD_SHARED_DATA") or HERE.parents[1] / "shared" / "data")
TRAINED = HERE / "runs" / "networks"

EPS = {
    "mnist_lenet5_adv": 0.3,
    "mnist_lenet5_clean": 0.3,
    "cifar10_resnet20": 1 / 255,
    "pgd_at": 0.1,
    "fgsm_at": 0.1,
    "mnist_large_eps": 0.3,
    "digits_100": 0.15,
    "digits_1000": 0.05,
    "resnet18": 8 / 255,
}
_TRAINED_HERE = {
    "pgd_at": ("networks", "pgd-at"),
    "fgsm_at": ("networks", "fgsm-at"),
    "mnist_large_eps": ("networks-mnist", "large-eps-at"),
    "digits_100": ("networks-digits-100", "pgd-at"),
    "digits_1000": ("networks-digits-1000", "plain"),
}
"""The campaign file and the defense of it that a network is."""
_MNIST_TRAINING = 8000
"""How many of MNIST's 10,000 test images the campaign on them trains with. The measuring data have no others."""
_MNIST = {"mnist_large_eps": "mnist.npz", "digits_100": "digits_100.npz", "digits_1000": "digits_1000.npz"}
"""Archives that are made of MNIST's test images, of those networks that are trained on them."""
_PAIR, _MEMBERS = "mnist_pair", ("mnist_lenet5_adv", "mnist_lenet5_clean")
_RANDOM = {"resnet18": ("resnet18", {}), "wrn-28-10": ("wrn", {"depth": 28, "width": 10})}


def there(name: str) -> bool:
    """Whether ``load`` can give it on this machine."""
    if name == _PAIR:
        return all(there(member) for member in _MEMBERS)
    if name in _MNIST:
        return (SHARED / "mnist").is_dir()
    return name in _RANDOM or name in (*_TRAINED_HERE, "digits") or (SHARED / "networks" / f"{name}.safetensors").is_file()


def loaded(cases: Iterable[tuple[str, int]]) -> Iterator[tuple[str, int, nn.Module, Tensor, Tensor]]:
    """The networks of (name, images) that are on this machine: name and images again, and what ``load`` gives."""
    for name, images in cases:
        if there(name):
            yield name, images, *load(name, images)


def load(name: str, images: int, device: str = "cpu") -> tuple[nn.Module, Tensor, Tensor]:
    """The network in evaluation mode, (N, C, H, W) test images in [0, 1], and their labels."""
    if name in _RANDOM:
        network, x, y = _random(name, images)
    elif name in _TRAINED_HERE:
        network, x, y = _trained(name, images)
    elif name == "digits":
        network, x, y = _digits(images)
    elif name == _PAIR:
        loaded = [_shared(member, images) for member in _MEMBERS]
        _, x, y = loaded[0]
        network = MeanProbability([member for member, _, _ in loaded], log_mean_probability)
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
    # CIFAR-10's images are stored with their channels last, which pyautoattack's `view` does not take.
    return network, torch.as_tensor(data.test.unit()).contiguous(), torch.as_tensor(data.test.labels).long()


def _trained(name: str, images: int) -> tuple[nn.Module, Tensor, Tensor]:
    network = load_target(train(name)).module
    if name in _MNIST:
        test = load_splits("npz", {"file": str(_mnist(name))}, SplitParams(test=images)).test
    else:
        test = load_splits("fashion-mnist", {}, SplitParams(train=8000, test=images)).test
    return network, torch.as_tensor(test.unit()), torch.as_tensor(test.labels).long()


def train(name: str) -> Path:
    """Where a network is that robustkd trains, after training it if need be."""
    campaign, defense = _TRAINED_HERE[name]
    folder = TRAINED / campaign
    if found := _finished_training(folder, defense):
        return found
    if name in _MNIST:
        _mnist(name)
    command = [sys.executable, "-m", "robustkd", "run", str(HERE / f"{campaign}.yaml"), "--out", str(folder), "--no-track"]
    subprocess.run([*command, "--quiet"], check=True, stdout=subprocess.DEVNULL)
    if found := _finished_training(folder, defense):
        return found
    raise RuntimeError(f"{folder} holds no network of {defense}")


def weights(name: str) -> str:
    """Which weights a network has that is trained here, by their hash: another torch may train another one. Empty for all others."""
    if name not in _TRAINED_HERE:
        return ""
    return hashlib.sha256((train(name) / "weights.safetensors").read_bytes()).hexdigest()[:12]


def _finished_training(folder: Path, defense: str) -> Path | None:
    metas = ((meta.parent, json.loads(meta.read_text())) for meta in folder.glob("cells/*/*/meta.json"))
    return next((found for found, meta in metas if meta["kind"] == "train" and meta["defense"] == defense), None)


def _mnist(name: str) -> Path:
    """MNIST's test images, or rows of them, as an archive with a part to train with."""
    archive = TRAINED / _MNIST[name]
    if not archive.is_file():
        images = load_splits("mnist", {"root": str(SHARED / "mnist")}, SplitParams()).test
        x, y = np.asarray(images.images), np.asarray(images.labels)
        parts = (x[:_MNIST_TRAINING], y[:_MNIST_TRAINING]), (x[_MNIST_TRAINING:], y[_MNIST_TRAINING:])
        if name != "mnist_large_eps":
            digits = len(name.removeprefix("digits_")) - 1
            parts = _rows_of_digits(*parts[0], digits, 20_000, seed=0), _rows_of_digits(*parts[1], digits, 1_000, seed=1)
        archive.parent.mkdir(parents=True, exist_ok=True)
        (x_train, y_train), (x_test, y_test) = parts
        np.savez(archive, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return archive


def _rows_of_digits(x: np.ndarray, y: np.ndarray, digits: int, count: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """``count`` images of so many digits beside each other, at half their size, and the numbers that they show."""
    chosen = np.random.default_rng(seed).integers(len(x), size=(count, digits))
    half = x.reshape(len(x), 14, 2, 14, 2).astype(np.float64).mean((2, 4)).round().astype(np.uint8)
    rows = half[chosen].transpose(0, 2, 1, 3).reshape(count, 14, 14 * digits)
    return rows, y[chosen].astype(np.int64) @ 10 ** np.arange(digits - 1, -1, -1)


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
