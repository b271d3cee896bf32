"""A campaign's network that is good at digits and has memory for few samples, as text for a file of its own."""

from __future__ import annotations


def small_network(name: str, forward: str) -> str:
    """The source of a class called ``name``: nearest class means, after the lines ``forward`` about ``x``, (B, 1, 8, 8)."""
    return f"""
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

HERE = Path(__file__)


class {name}(nn.Module):
    def __init__(self):
        super().__init__()
        x, y = load_digits(return_X_y=True)
        means = torch.stack([torch.from_numpy(x[y == k] / 16).float().mean(0) for k in range(10)])
        self.head = nn.Linear(64, 10)
        self.head.weight.data, self.head.bias.data = 2 * means, -means.square().sum(1)

    def forward(self, x):
        {forward}
"""
