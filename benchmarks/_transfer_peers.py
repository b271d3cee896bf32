"""The attacks that are made to transfer, as TransferAttack has them."""

from __future__ import annotations

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
