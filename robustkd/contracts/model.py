"""The model contract: an architecture by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from robustkd.contracts.params import Params

if TYPE_CHECKING:
    from torch import nn


class Model(ABC):
    """An architecture: parameters, and ``build``. Normalisation is part of the network it builds."""

    Params: ClassVar[type[Params]] = Params
    source: ClassVar[str] = ""

    def __init__(self, params: Any = None) -> None:
        self.params: Any = self.Params() if params is None else params

    @abstractmethod
    def build(self, input_shape: Sequence[int], num_classes: int) -> nn.Module:
        """A freshly initialised network from (B, *input_shape) in [0, 1] to (B, num_classes) logits.

        Initialisation draws from torch's global generator, which the caller has seeded.
        """
