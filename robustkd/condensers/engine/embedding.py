"""What a trained network says of the training images: its answers, or the features that images are compared by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustkd.contracts import Arrays, FitContext
from robustkd.defenses.training.batches import Samples
from robustkd.defenses.training.networks import teacher
from robustkd.lazy import torch
from robustkd.targets.activations import with_penultimate
from robustkd.targets.frozen import frozen

if TYPE_CHECKING:
    from torch import Tensor

_BATCH = 500


def embedded(context: FitContext[Arrays], network: str | None) -> Tensor:
    """(N, D) float64 on the CPU, of each training image: its pixels, or what ``network``'s last linear layer is given.

    Args:
        network: the defense whose model looks at them.
    """
    if network is None:
        return torch.from_numpy(context.train.unit()).flatten(1).double()
    return torch.cat([features.cpu().double() for _, features in _looked_at(context, network)])


def answers(context: FitContext[Arrays], network: str) -> Tensor:
    """(N, K) logits of ``network`` for each training image, on the CPU."""
    return torch.cat([logits.cpu() for logits, _ in _looked_at(context, network)])


def _looked_at(context: FitContext[Arrays], network: str) -> list[tuple[Tensor, Tensor]]:
    """Logits and features, a batch at a time."""
    target, samples = teacher(context, network), Samples(context.train, context.device)
    with frozen(target.module), torch.no_grad():
        return [with_penultimate(target, samples.take(rows)[0]) for rows in torch.arange(len(samples)).split(_BATCH)]
