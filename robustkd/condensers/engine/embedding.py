"""Where images are compared: as pixels, or as the features of a trained network."""

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
    samples = Samples(context.train, context.device)
    parts = torch.arange(len(samples)).split(_BATCH)
    if network is None:
        return torch.cat([samples.take(rows)[0].flatten(1).cpu().double() for rows in parts])
    target = teacher(context, network)
    with frozen(target.module), torch.no_grad():
        return torch.cat([with_penultimate(target, samples.take(rows)[0])[1].cpu().double() for rows in parts])
