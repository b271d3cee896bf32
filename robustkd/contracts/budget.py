"""What the kinds of budget share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from robustkd.contracts.errors import UsageError
from robustkd.contracts.region import Region

Norm = Literal["linf", "l2", "l1", "l0"]
"""In which a perturbation of an image is measured."""
Space = Literal[
    "pixels", "corruption", "spatial", "flow", "colour", "perceptual", "prompt", "embeddings", "prefill", "seed", "weights"
]
"""What the attacker chooses."""


class BaseBudget(ABC):
    """A budget: what a threat model allows.

    Attributes:
        unit: what the horizontal axis of a curve counts.
        of_images: whether it is a budget of images: their curves begin at 0, with the clean accuracy.
    """

    unit: ClassVar[str] = "eps"
    of_images: ClassVar[bool] = False

    @property
    @abstractmethod
    def space(self) -> Space:
        """What the attacker chooses."""

    @property
    @abstractmethod
    def stored(self) -> tuple[str, float]:
        """The values under which results file it: ``norm`` and ``eps``."""

    @property
    @abstractmethod
    def identity(self) -> tuple[str, float, Space, int]:
        """What the identity of a cell has of it: norm or another measure, eps, space and attempts."""

    @property
    def points(self) -> tuple[float, ...]:
        """The points of a curve below the budget, where the budget itself says which."""
        return ()

    @property
    def references(self) -> tuple[str, ...]:
        """The names of the models that it is measured by, beside the attacked one."""
        return ()

    @property
    def region(self) -> Region | None:
        """Where in an image pixels may change; None where they may everywhere, and of what is no budget of pixels."""
        return None

    @property
    def plain(self) -> str:
        """The budget in words for a terminal, such as `linf eps 0.1` or `any wording, 20 attempts`."""
        return str(self)


def require_one_of(name: str, value: str, *allowed: str) -> None:
    """Refuse a value that is not among those allowed.

    Raises:
        UsageError: it is not.
    """
    if value not in allowed:
        raise UsageError(f"threat model: {name} '{value}' is unknown", fix=f"use one of {', '.join(allowed)}")
