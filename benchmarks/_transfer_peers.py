"""The attacks that are made to transfer, as TransferAttack has them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from _authors import authors, torch_but, without_cuda
from _counted import Counted
from _job import Job
from _peers import Attack
from torch import Tensor, nn


class _CountsAlone(nn.Module):
    """What counts the passes, as a layer after the network: one attack looks for its layer among the network's children."""

    def __init__(self, counted: Counted) -> None:
        super().__init__()
        self.passes = counted.passes

    def forward(self, logits: Tensor) -> Tensor:
        return self.passes.follow(logits)


def transferattack(name: str, **renamed: str) -> Callable[[Job], Attack]:
    """``renamed``: their parameter -> our budget's entry."""

    def make(job: Job) -> Attack:
        peer = authors("transferattack").load_attack_class(name)
        module = authors(peer.__module__)
        given: dict[str, Any] = {theirs: job.budget[ours] for theirs, ours in renamed.items()}

        def run(model: Counted, x: Tensor, y: Tensor) -> Tensor:
            # One of them draws noise for images of 3 x 224 x 224.
            vars(module)["torch"] = torch_but(randn=lambda *_: torch.randn(x.shape))
            surrogate = nn.Sequential(nn.Identity(), model.network, _CountsAlone(model)).eval()
            peer.load_model = lambda self, name: surrogate
            with without_cuda():
                attack = peer(
                    model_name="ours", epsilon=job.eps, alpha=job.budget["step_size"], epoch=job.budget["steps"], **given
                )
                found: Tensor = x + attack(x, y)
            return found.detach().clamp(0, 1)

        return run

    return make


def transferattack_sgm(job: Job) -> Attack:
    """SGM by its authors' hooks, which want ReLU modules by name: each block is given one, as torchvision's have it."""
    peer = authors("transferattack").load_attack_class("sgm")

    def run(model: Counted, x: Tensor, y: Tensor) -> Tensor:
        network = copy.deepcopy(model.network)
        for name, block in list(network.named_modules()):
            if hasattr(block, "branch_end"):
                parent, _, last = name.rpartition(".")
                setattr(network.get_submodule(parent), last, _WithReLU(block))
        surrogate = nn.Sequential(nn.Identity(), network, _CountsAlone(model)).eval()
        peer.load_model = lambda self, name: surrogate
        given = {"epsilon": job.eps, "alpha": job.budget["step_size"], "epoch": job.budget["steps"]}
        with without_cuda():
            attack = peer(model_name="resnet18", gamma=job.budget["gamma"], decay=job.budget["decay"], **given)
            found: Tensor = x + attack(x, y)
        return found.detach().clamp(0, 1)

    return run


class _WithReLU(nn.Module):
    """A basic block whose ReLUs are one module."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.bn2 = block.conv1, block.bn1, block.conv2, block.bn2
        self.shortcut, self.relu = block.shortcut, nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        branch = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out: Tensor = self.relu(branch + self.shortcut(x))
        return out


def smoothed_by_formula(job: Job) -> Attack:
    """The formula of Wu, Zhu & Tai as it stands: signs of the mean gradient at points with normal noise, from the image on."""

    def run(model: Counted, x: Tensor, y: Tensor) -> Tensor:
        found, loss = x.clone(), nn.CrossEntropyLoss(reduction="sum")
        for _ in range(job.budget["steps"]):
            total = torch.zeros_like(x)
            for _ in range(job.budget["neighbours"]):
                near = (found + job.eps / 2 * torch.randn_like(x)).requires_grad_()
                (gradient,) = torch.autograd.grad(loss(model(near), y), near)
                total += gradient
            step = 2.5 * job.eps / job.budget["steps"] * total.sign()
            found = torch.minimum(torch.maximum(found + step, x - job.eps), x + job.eps).clamp(0, 1)
        return found

    return run
