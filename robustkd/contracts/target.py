"""The target contract: the thing that is attacked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor, nn


class Target(ABC):
    """A model ready to be attacked, with everything that makes eps mean the same thing everywhere.

    Inputs are in the target's own ``bounds`` (pixels in [0, 1]); normalisation, resizing and every other
    preprocessing step live inside ``module``. A target is a model plus a *card*: plain JSON from which the same
    object can be rebuilt once its weights are loaded.

    Attributes:
        kind: the target's type, as written in its card.
        module: the network, callable on a batch of inputs.
    """

    kind: ClassVar[str]
    module: nn.Module

    @abstractmethod
    def card(self) -> dict[str, Any]:
        """A JSON description that ``from_card`` can rebuild the target from, given its weights."""

    @classmethod
    @abstractmethod
    def from_card(cls, card: dict[str, Any]) -> Target:
        """The target described by ``card``, with fresh weights."""

    @abstractmethod
    def __call__(self, inputs: Tensor) -> Tensor:
        """The output for a batch; for a classifier (B, K) logits."""

    @abstractmethod
    def features(self, inputs: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """The outputs of named submodules of ``module`` for a batch."""

    def to(self, device: Any) -> Target:
        """Move the weights; returns itself."""
        self.module.to(device)
        return self
