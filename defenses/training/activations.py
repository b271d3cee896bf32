"""Which activation functions a forward pass calls, and on what. Importing it imports torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from robustkd.lazy import F, torch

_ACTIVATIONS = {F.relu, F.leaky_relu, F.gelu, F.silu, F.elu, F.hardtanh, torch.relu, torch.tanh, Tensor.relu, Tensor.tanh}


class Activations(TorchFunctionMode):
    """Tells the input of each activation function that is called inside the block."""

    def __init__(self, tell: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.tell = tell

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _ACTIVATIONS:
            self.tell(args[0])
        return func(*args, **(kwargs or {}))
