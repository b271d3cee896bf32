"""Gradients that lie, around a ResNet-20 on CIFAR-10: larger images and a deeper network than the exam's.

The network is not defended: its true robust accuracy under eps 2/255 is 0.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import robustkd
from robustkd.contracts import Arrays
from robustkd.data import SplitParams, load_splits
from support.disguises import NoiseBackwards
from support.published_networks import resnet20

EPS = 2 / 255
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def blurred(x: Tensor) -> Tensor:
    return F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)


class GradientOfABlurredCopy(torch.autograd.Function):
    """The whole network in one function of its own, so that nothing inside can be seen."""

    @staticmethod
    def forward(ctx, x, network):
        ctx.save_for_backward(x)
        ctx.network = network
        return network(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            copy = x.detach().requires_grad_()
            (found,) = torch.autograd.grad(ctx.network(blurred(copy)), copy, gradient)
        return found, None


class Lying(nn.Module):
    def __init__(self, network: nn.Module, how: str) -> None:
        super().__init__()
        self.network, self.how = network, how
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1))

    def normalised(self, x: Tensor) -> Tensor:
        return self.network((x - self.mean) / self.std)

    def forward(self, x: Tensor) -> Tensor:
        match self.how:
            case "noise":
                return self.normalised(NoiseBackwards.apply(x))
            case "blurred copy":
                lie = self.normalised(blurred(x))
                return lie + (self.normalised(x) - lie).detach()
            case "blurred copy, out of sight":
                return GradientOfABlurredCopy.apply(x, self.normalised)
            case "sine":
                return self.normalised(x + 0.004 * torch.sin(2 * math.pi * 255 * x))
        return self.normalised(x)


@pytest.fixture(scope="module")
def network(shared_data: Path) -> nn.Module:
    return resnet20(shared_data).eval()


@pytest.fixture(scope="module")
def images(shared_data: Path) -> Arrays:
    return load_splits("cifar10", {"root": shared_data / "cifar10"}, SplitParams(test=100)).test


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("how", ["noise", "blurred copy", "blurred copy, out of sight", "sine"])
def test_a_gradient_that_lies_is_not_believed_and_the_remedy_comes_to_the_truth(network, images, how):
    found = robustkd.audit(Lying(network, how).eval(), images.unit(), images.labels, eps=EPS)
    assert found.verdict != "credible"
    assert found.remedy is not None
    assert found.remedy.robust_accuracy <= 0.05
