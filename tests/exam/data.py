"""Handwritten digits of scikit-learn, (N, 1, 8, 8) in [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor

TRAIN = 1200


@dataclass(frozen=True)
class Samples:
    """Images (N, 1, 8, 8) and labels (N,)."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def labelled(self, y: Tensor) -> Samples:
        return Samples(self.x, y)


def digits(test: int) -> tuple[Samples, Samples]:
    """1,200 images to train on, and ``test`` others, the same for every seed."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(20))
    x = torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8)[order]
    y = torch.tensor(labels).long()[order]
    end = TRAIN + test
    return Samples(x[:TRAIN], y[:TRAIN]), Samples(x[TRAIN:end], y[TRAIN:end])
