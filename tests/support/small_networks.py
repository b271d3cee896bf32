"""Digits as tensors, networks that learn them in a second, and what can be put around a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

Net = TypeVar("Net", bound=nn.Module)


def all_digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's 1,797 images (N, 1, 8, 8) in [0, 1], and their labels."""
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(labels)


def learn(net: Net, x: Tensor, y: Tensor, steps: int = 60, lr: float = 0.01) -> Net:
    """``net`` itself after so many steps of Adam, each on all samples."""
    optimiser = torch.optim.Adam(net.parameters(), lr)
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimiser.step()
    return net


def convolutional() -> nn.Sequential:
    """Untrained, for such images; the same at each call."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 10)).eval()


def noise_with_labels(net: nn.Module, count: int, wrong: int) -> tuple[Tensor, Tensor]:
    """Random images, and the classes that ``net`` takes them for; the first ``wrong`` have another label."""
    torch.manual_seed(1)
    x = torch.rand(count, 1, 8, 8)
    with torch.no_grad():
        y = net(x).argmax(1)
    y[:wrong] = (y[:wrong] + 1) % 10
    return x, y


class Around(nn.Module):
    """A network with something before or behind it."""

    def __init__(
        self, net: nn.Module, before: Callable[[Any], Any] = lambda x: x, behind: Callable[[Any], Any] = lambda z: z
    ) -> None:
        super().__init__()
        self.net, self.before, self.behind = net, before, behind

    def forward(self, x: Tensor) -> Any:
        return self.behind(self.net(self.before(x)))
