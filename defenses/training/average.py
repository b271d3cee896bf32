"""An exponential moving average of the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn


class WeightAverage:
    """theta_bar <- d * theta_bar + (1 - d) * theta after every step, d = min(decay, (1 + n) / (10 + n)) at the n-th.

    The smaller d of the first steps lets the average forget the initialisation in trainings shorter than 1 / (1 - decay)
    steps. Floating-point buffers (BatchNorm's statistics) are averaged like weights, counters are copied.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.weights: dict[str, Tensor] = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    def update(self, module: nn.Module) -> None:
        """Take in the weights as they are now."""
        self.steps += 1
        d = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, tensor in module.state_dict().items():
            mean = self.weights[name]
            if mean.is_floating_point():
                mean.lerp_(tensor.detach(), 1 - d)
            else:
                mean.copy_(tensor)
