"""Where networks are trained: the data, and one training loop for all of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exam.ascent import Ball, Network, Norm, adversarial
from exam.data import Samples
from exam.networks import cnn

TrainingLoss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Adversary:
    """What a network is trained against."""

    eps: float
    norm: Norm = "linf"
    steps: int = 2

    def points(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        return adversarial(network, Ball(x, self.norm, self.eps), y, steps=self.steps)


@dataclass(frozen=True)
class Subject:
    """A network of the exam.

    Attributes:
        model: what is audited: (N, 1, 8, 8) in [0, 1] -> (N, K) logits.
        norm, eps: the budget under which it is audited.
        test: the samples that it is audited on.
        twins: differentiable functions that are like the network where it has no useful gradient: what the truth climbs on.
        batchwise: whether what it answers to one sample depends on the others.
    """

    model: nn.Module
    eps: float
    test: Samples
    norm: Norm = "linf"
    twins: tuple[Network, ...] = ()
    batchwise: bool = False


class Lab:
    """Trains the networks of one drawn subject."""

    def __init__(self, train: Samples, test: Samples, seed: str) -> None:
        self.train, self.test = train, test
        self.rng = random.Random(seed)
        torch.manual_seed(self.rng.randrange(2**31))

    def fit(
        self,
        network: nn.Module,
        *,
        loss: TrainingLoss = F.cross_entropy,
        epochs: int = 15,
        lr: float = 3e-3,
        adversary: Adversary | None = None,
        samples: Samples | None = None,
        penalty: Callable[[nn.Module, Tensor, Tensor], Tensor] | None = None,
        weight_decay: float = 0.0,
    ) -> nn.Module:
        """Adam with a rate that falls linearly; ``penalty(network, x, y)`` is added to the loss. Returns it in evaluation mode."""
        samples = samples or self.train
        batches = -(-len(samples) // 100)
        optimiser = torch.optim.Adam(network.parameters(), lr, weight_decay=weight_decay)
        schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.05, epochs * batches)
        network.train()
        for _ in range(epochs):
            for rows in torch.randperm(len(samples)).split(100):
                x, y = samples.x[rows], samples.y[rows]
                attacked = adversary.points(network, x, y) if adversary else x
                total = loss(network(attacked), y)
                if penalty:
                    total = total + penalty(network, x, y)
                optimiser.zero_grad()
                total.backward()
                optimiser.step()
                schedule.step()
        network.eval()
        return network.requires_grad_(False)

    def base(self, eps: float, robust: float, width: int = 12) -> nn.Module:
        """A CNN that is trained against ``robust`` x eps: what most artefacts are put around."""
        return self.fit(cnn(width), epochs=12, adversary=Adversary(robust * eps) if robust else None)

    def subject(
        self,
        model: nn.Module,
        eps: float,
        *twins: Network,
        norm: Norm = "linf",
        test: Samples | None = None,
        batchwise: bool = False,
    ) -> Subject:
        model.eval()
        return Subject(model.requires_grad_(False), eps, test or self.test, norm, twins or (model,), batchwise)
