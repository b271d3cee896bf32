"""The model contract: an architecture by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from robustkd.contracts.plugin import Plugin

if TYPE_CHECKING:
    from torch import nn


class Model(Plugin, ABC):
    """An architecture: parameters, and ``build``. Normalisation is part of the network it builds."""

    @abstractmethod
    def build(self, input_shape: Sequence[int], num_classes: int) -> nn.Module:
        """A freshly initialised network from (B, *input_shape) in [0, 1] to (B, num_classes) logits.

        Initialisation draws from torch's global generator, which the caller has seeded.
        """
