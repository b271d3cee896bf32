"""A linear classifier of scikit-learn's digits that nothing has to be trained for, as the source of a file of one's own."""

NEAREST_MEAN = """
import torch
from sklearn.datasets import load_digits
from torch import nn


def build():
    # The nearest of the ten classes' means, as a linear network: nothing is trained.
    x, y = load_digits(return_X_y=True)
    means = torch.stack([torch.from_numpy(x[y == k] / 16).float().mean(0) for k in range(10)])
    head = nn.Linear(64, 10)
    head.weight.data, head.bias.data = 2 * means, -means.square().sum(1)
    return nn.Sequential(nn.Flatten(), head)
"""
