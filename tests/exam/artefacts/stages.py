"""What artefacts are made of."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn

Function = Callable[[Tensor], Tensor]


class Chain(nn.Module):
    """Functions and networks, one after the other."""

    def __init__(self, *parts: Function) -> None:
        super().__init__()
        self.parts = parts
        self.networks = nn.ModuleList(part for part in parts if isinstance(part, nn.Module))

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x


class Reply(nn.Module):
    """A function of the input as a network; ``networks`` are those that it uses."""

    def __init__(self, function: Function, *networks: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def with_gradient_of(value: Tensor, path: Tensor) -> Tensor:
    """``value``, with the gradient of ``path``."""
    return value.detach() + path - path.detach()


def staircase(h: Tensor, step: float, softness: float) -> Tensor:
    """Rounds to multiples of ``step``: for ``softness`` 0 as it is, with no gradient; towards 1 ever more gently."""
    if softness == 0:
        return (h / step).round() * step
    turn = 2 * math.pi / step
    return h - (1 - softness) * (turn * h).sin() / turn
