"""The networks of targets that are made of others. Importing it imports torch, so whoever builds one imports it then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from robustkd.lazy import nn, torch
from robustkd.scoring.probabilities import log_of_probabilities

if TYPE_CHECKING:
    from torch import Tensor


class WithoutGradients(nn.Module):
    """A network whose answers cannot be differentiated. A target that has one among its parts lacks the capability ``gradients``."""


class MeanProbability(nn.Module):
    """The members' mean probability, as its logarithm."""

    def __init__(self, members: Sequence[nn.Module], mean: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self._mean = mean

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K) log-probabilities."""
        return self._mean(torch.stack([member(images) for member in self.members]))


class LogOfProbabilities(nn.Module):
    """log p(x) of a network that ends with a softmax."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K) log-probabilities."""
        return log_of_probabilities(self.network(images))


class Pipeline(nn.Module):
    """x -> model(t_n(.. t_1(x)))."""

    def __init__(self, transforms: Sequence[nn.Module], model: nn.Module) -> None:
        super().__init__()
        self.transforms = nn.Sequential(*transforms)
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> what the model returns."""
        return self.model(self.transforms(images))
