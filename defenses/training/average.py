"""An average of the weights on their way."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn


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
