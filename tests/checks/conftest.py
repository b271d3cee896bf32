from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from support.small_networks import all_digits, learn


@pytest.fixture(scope="session")
def digits() -> tuple[Tensor, Tensor]:
    return all_digits()


@pytest.fixture(scope="module")
def honest(digits: tuple[Tensor, Tensor]) -> nn.Module:
    """A network that hides nothing, and has learned the first 1,200 digits."""
    x, y = digits
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    return learn(net, x[:1200], y[:1200]).eval()
