"""A network that attacks of robustkd and of other packages are compared on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustkd.data import load_splits
from robustkd.data.splits import SplitParams


def trained_on_digits(*layers: nn.Module, epochs: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A network after a few epochs on digits, frozen, and 60 test images that it classifies rightly, with their labels."""
    data = load_splits("digits", {}, SplitParams(train=1200, test=100))
    x, y = torch.from_numpy(data.train.unit()), torch.from_numpy(data.train.labels)
    net = nn.Sequential(*layers)
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(epochs):
        for part in torch.randperm(len(x)).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x[part]), y[part]).backward()
            optimiser.step()
    net.eval().requires_grad_(False)
    x, y = torch.from_numpy(data.test.unit()), torch.from_numpy(data.test.labels)
    right = net(x).argmax(1) == y
    assert right.sum() >= 60
    return net, x[right][:60], y[right][:60]
