"""Networks that others have trained, in the folder of the measuring data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from robustkd import plugins
from robustkd.targets.checkpoints import load_weights


def adversarially_trained_lenet(shared_data: Path) -> nn.Module:
    """For MNIST."""
    return _loaded(shared_data, "mnist_lenet5_adv", plugins.make("models", {"kind": "lenet5"}).build((1, 28, 28), 10))


def resnet20(shared_data: Path, **params: Any) -> nn.Module:
    """For CIFAR-10, undefended; without ``params`` it is given images that are normalised already."""
    net = plugins.make("models", {"kind": "resnet20", **params}).build((3, 32, 32), 10)
    return _loaded(shared_data, "cifar10_resnet20", net)


def masked_cnn(shared_data: Path, binarise: nn.Module) -> nn.Module:
    """The binarised CNN of Schott et al. 2019 for MNIST, behind one's own way to binarise."""
    return _loaded(shared_data, "mnist_masked_cnn", MaskedCNN(binarise))


class MaskedCNN(nn.Module):
    """Convolutions of 20, 70 and 256 channels with BatchNorm and ELU, then ten logits."""

    def __init__(self, binarise: nn.Module) -> None:
        super().__init__()
        self.binarise = binarise
        shapes = ((1, 20, 5, 1), (20, 70, 4, 2), (70, 256, 3, 2))
        for i, (given, made, kernel, stride) in enumerate(shapes):
            self.add_module(f"conv_{i}", nn.Conv2d(given, made, kernel, stride=stride))
            self.add_module(f"bn_{i}", nn.BatchNorm2d(made))
        self.conv_3 = nn.Conv2d(256, 10, 5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, 28, 28) -> (B, 10)."""
        x = self.binarise(x)
        for i in range(3):
            x = nn.functional.elu(getattr(self, f"bn_{i}")(getattr(self, f"conv_{i}")(x)))
        logits: Tensor = self.conv_3(x)[:, :, 0, 0]
        return logits


def _loaded(shared_data: Path, name: str, net: nn.Module) -> nn.Module:
    load_weights(net, shared_data / "networks" / f"{name}.safetensors")
    return net
