"""The target contract: the thing that is attacked."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Precision = Literal["full", "bf16"]
"""In which fixed-budget attacks but AutoAttack take gradients: the network's own precision, or bfloat16 (autocast)."""


class Target(ABC):
    """A model ready to be attacked, with everything that makes eps mean the same thing everywhere.

    Inputs are in the target's own ``bounds`` (pixels in [0, 1]); normalisation, resizing and every other
    preprocessing step live inside ``module``. A target is a model plus a *card*: plain JSON from which the same
    object can be rebuilt once its weights are loaded.

    Attributes:
        kind: the target's type, as written in its card.
        module: the network, callable on a batch of inputs. A stage of it (any submodule) without a useful gradient may
            declare one by a method ``surrogate(inputs) -> Tensor``, called like ``forward``: see ``targets.surrogate``.
        precision: in which a search that only goes uphill is to ask for gradients; whoever asks sees to it.
        bounds: the range of valid inputs; pixels in [0, 1] where a target declares no other.
        num_classes: K, of a classifier.
        input_shape: of one input of a classifier, such as (C, H, W).
    """

    kind: ClassVar[str]
    module: nn.Module
    precision: Precision = "full"
    bounds: tuple[float, float] = (0.0, 1.0)
    num_classes: int
    input_shape: tuple[int, ...]

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

    @property
    def device(self) -> torch.device:
        """Where the weights are (the CPU for a network without any)."""
        import torch  # late: importing the contracts does not import it

        return next((tensor.device for tensor in self.module.parameters()), torch.device("cpu"))

    def in_precision(self, precision: Precision) -> Target:
        """The same network, to be asked for gradients in ``precision``; itself where it is already."""
        if precision == self.precision:
            return self
        asked = copy.copy(self)
        asked.precision = precision
        return asked

    def to(self, device: Any) -> Target:
        """Move the weights; returns itself."""
        self.module.to(device)
        return self


class WrappedTarget(Target):
    """A target that answers through another one. A subclass overrides ``__call__``; bounds, classes and the rest are the inner one's."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.kind = target.kind  # type: ignore[misc]  # what is said about the target is said of the inner one
        self.module = target.module
        self.precision = target.precision
        self.bounds = target.bounds

    def __getattr__(self, name: str) -> Any:
        if name == "target":  # not yet set: while unpickling, say
            raise AttributeError(name)
        return getattr(self.target, name)

    def __call__(self, inputs: Tensor) -> Tensor:
        """The inner target's answer."""
        return self.target(inputs)

    @property
    def device(self) -> torch.device:
        """The inner target's."""
        return self.target.device

    def card(self) -> dict[str, Any]:
        """The inner target's: a wrapper lives as long as what uses it."""
        return self.target.card()

    @classmethod
    def from_card(cls, card: dict[str, Any]) -> Target:
        """Not possible, see ``card``."""
        raise NotImplementedError("a wrapper is never stored")
