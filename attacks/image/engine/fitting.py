"""What attacks share that learn one perturbation for all images: the samples it is fitted to, their order, and the bounded loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustkd.attacks.image.engine.oracle import Objective
from robustkd.contracts import Arrays, Batch
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def training_batch(data: Arrays, samples: int, rng: SampleRng) -> tuple[Batch, SampleRng]:
    """At most ``samples`` of ``data``, drawn without repeats, and their random streams."""
    chosen = shuffled(rng.fork("choice"))[:samples]
    part, rng = data.select(chosen.cpu().numpy()), rng.select(chosen)
    images, labels = torch.from_numpy(part.unit()), torch.from_numpy(part.labels)
    return Batch(images.to(chosen.device), labels.to(chosen.device), rng.index), rng


def epochs(count: int, size: int, rng: SampleRng) -> list[Tensor]:
    """The rows of each step: ``count`` passes over all samples of ``rng``, each in another order, ``size`` samples at a time."""
    return [rows for epoch in range(count) for rows in shuffled(rng.fork(epoch)).split(size)]


def capped(objective: Objective, ceiling: float | None) -> Objective:
    """``objective`` up to ``ceiling``, beyond which a sample adds nothing; itself where there is none."""
    if ceiling is None:
        return objective
    return lambda logits, rows: objective(logits, rows).clamp_max(ceiling)


def shuffled(rng: SampleRng) -> Tensor:
    """(B,) the rows in random order."""
    return rng.uniform((1,)).squeeze(1).argsort(stable=True)
