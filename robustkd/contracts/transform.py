"""The transform contract: a stage in front of a classifier, by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from robustkd.contracts.plugin import Plugin

if TYPE_CHECKING:
    from torch import nn


class Transform(Plugin, ABC):
    """An input transform: parameters, and ``build``.

    The stage it builds maps (B, C, H, W) in [0, 1] to the same shape and range. Where it cannot be differentiated, or its
    gradient is zero, it declares a backward surrogate (see ``Target.module``); random numbers come from torch's global
    generator. It belongs to the defense: an attack may use the surrogate, but what is judged is the stage itself.

    Attributes:
        learns: whether it is worth nothing until a defense has trained it.
    """

    learns: ClassVar[bool] = False

    @abstractmethod
    def build(self, input_shape: Sequence[int]) -> nn.Module:
        """The stage for images of (C, H, W)."""
