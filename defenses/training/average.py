"""An average of the weights on their way, and BatchNorm's statistics for it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from robustkd.lazy import nn, torch

if TYPE_CHECKING:
    from torch import Tensor


class WeightAverage:
    """theta_bar <- d * theta_bar + (1 - d) * theta at each update; floating-point buffers are averaged like weights, counters copied.

    Exponential, with d = min(decay, (1 + n) / (10 + n)) at the n-th update: the smaller d of the first ones lets the average forget
    the initialisation in trainings shorter than 1 / (1 - decay) steps. Without a decay all updates count alike, d = (n - 1) / n, as
    in stochastic weight averaging; BatchNorm's statistics belong to no network then until they are computed anew.

    Source: Izmailov et al.: Averaging weights leads to wider optima and better generalization (UAI 2018).
    """

    def __init__(self, module: nn.Module, decay: float | None) -> None:
        self.decay = decay
        self.steps = 0
        self.weights: dict[str, Tensor] = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    def update(self, module: nn.Module) -> None:
        """Take in the weights as they are now."""
        self.steps += 1
        n = self.steps
        d = (n - 1) / n if self.decay is None else min(self.decay, (1 + n) / (10 + n))
        for name, tensor in module.state_dict().items():
            mean = self.weights[name]
            if mean.is_floating_point():
                mean.lerp_(tensor.detach(), 1 - d)
            else:
                mean.copy_(tensor)


def recompute_batch_norm(module: nn.Module, images: Iterable[Tensor]) -> None:
    """Give the BatchNorm layers that are being trained the mean and the variance of what they are given for ``images``.

    Others keep their statistics: those of a part that stays in evaluation mode, or whose weights want no gradient, such as a finished
    model behind a stage.

    Args:
        module: its weights are the average.
        images: (B, *shape) each; the mean over these minibatches is taken, not one that forgets.
    """
    mode = module.training
    module.train()
    learning = {}
    for name, layer in module.named_modules():
        if not isinstance(layer, nn.modules.batchnorm._BatchNorm) or layer.running_mean is None:
            continue
        if layer.training and _learns(module, name):
            learning[layer] = layer.momentum
        else:
            layer.eval()
    if learning:
        for layer in learning:
            layer.reset_running_stats()
            layer.momentum = None  # all minibatches count alike
        with torch.no_grad():
            for batch in images:
                module(batch)
        for layer, momentum in learning.items():
            layer.momentum = momentum
    module.train(mode)


def _learns(module: nn.Module, name: str) -> bool:
    """Whether a layer's weights want a gradient; those of the part around it, where it has none itself."""
    path = name.split(".")
    for depth in range(len(path), -1, -1):
        weights = list(module.get_submodule(".".join(path[:depth])).parameters())
        if weights:
            return any(weight.requires_grad for weight in weights)
    return False
