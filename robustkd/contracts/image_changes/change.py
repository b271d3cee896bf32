"""Budgets that say how an image changes, other than by a norm of the difference."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import Field, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
from typing_extensions import override

from robustkd.contracts.budget import BaseBudget, Space
from robustkd.contracts.errors import AttackError, UsageError
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

Measured = TypeVar("Measured", "Tensor", np.ndarray)

PARAMETERS = "parameters"
"""The name in ``AttackResult.extras`` under which an attack returns the parameters of each sample's transform."""
SAME = 1e-5
"""How far, at most, a pixel of a returned image may be from the one that its parameters make: rounding."""
ROUNDING = 1e-6
"""The share of ``eps`` by which float32 rounding may exceed it."""
LATER = "later"
"""Marks, in its metadata, a field that a budget did not have at first."""


class ImageChange(BaseBudget):
    """A budget of images with a measure of its own.

    A subclass is a frozen dataclass with the fields that its name in results is made of, and ``eps``.

    Attributes:
        kind: what the attacker chooses.
        fix: what an attack has to do to stay inside.
        eps: the largest distance that is allowed.
    """

    kind: ClassVar[Space]
    fix: ClassVar[str] = "return images whose distance from the clean ones is eps or less"
    of_images: ClassVar[bool] = True
    eps: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.eps) and self.eps >= 0):
            raise UsageError(f"threat model: eps of the {self.kind} budget is {self.eps}", fix="give a finite number >= 0")

    @abstractmethod
    def distance(self, clean: Tensor, adversarial: Tensor, extras: Mapping[str, Tensor]) -> Tensor:
        """(B,) how far ``adversarial`` is from ``clean`` by this measure; inf for an image that no change of this kind makes.

        Args:
            clean, adversarial: (B, C, H, W).
            extras: what the attack returned beside the images.

        Raises:
            AttackError: something is missing in ``extras``, or of the wrong shape.
        """

    def within(self, spent: Measured, allowed: Measured | float) -> Measured:
        """(B,) whether distances are inside their budgets, but for float32 rounding."""
        return spent <= allowed * (1 + ROUNDING)

    @property
    @override
    def space(self) -> Space:
        return self.kind

    @property
    def measure(self) -> str:
        """The budget without eps, as results write it: ``spatial(rotation=30.0,translation=0.1,padding=edge)``.

        A field with ``LATER`` in its metadata is left out where it has its default, so that older results keep their names.
        """
        own = [part for part in fields(self) if part.compare and part.name != "eps"]  # type: ignore[arg-type]
        given = [(part.name, getattr(self, part.name)) for part in own if not self._later_default(part)]
        rest = ",".join(f"{name}={'+'.join(value) if isinstance(value, tuple) else value}" for name, value in given)
        return f"{self.kind}({rest})"

    def _later_default(self, part: Field[Any]) -> bool:
        return LATER in part.metadata and getattr(self, part.name) == part.default

    @property
    @override
    def stored(self) -> tuple[str, float]:
        return self.measure, self.eps

    @property
    @override
    def identity(self) -> tuple[str, float, Space, int]:
        return self.measure, self.eps, self.space, 1


class TransformBudget(ImageChange):
    """Every image that a transform makes whose parameters are at most ``eps`` in absolute value.

    An attack returns the parameters of each sample in ``extras["parameters"]``. The image is made from the clean one again, and one
    that differs from it lies outside every budget.
    """

    fix: ClassVar[str] = (
        "clip the parameters to eps, and return the images that they make, budget.rendered(clean, parameters); any other image has "
        "an infinite distance"
    )

    @abstractmethod
    def shape(self, image: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of one sample's parameters, for images of shape (C, H, W)."""

    @abstractmethod
    def rendered(self, clean: Tensor, parameters: Tensor) -> Tensor:
        """(B, C, H, W) the images that (B, \\*shape) ``parameters`` make of ``clean``, differentiable; parameters of 0 change nothing."""

    @override
    def distance(self, clean: Tensor, adversarial: Tensor, extras: Mapping[str, Tensor]) -> Tensor:
        parameters, wanted = extras.get(PARAMETERS), (len(clean), *self.shape(tuple(clean.shape[1:])))
        if parameters is None or tuple(parameters.shape) != wanted:
            told = "none" if parameters is None else f"some of shape {tuple(parameters.shape)}"
            raise AttackError(
                f"an attack under the threat model {self} returns the parameters of its transforms, {wanted}; it returned {told}",
                fix=f"put them into the result: AttackResult(.., extras={{'{PARAMETERS}': parameters}})",
            )
        size = parameters.detach().abs().flatten(1).amax(1).to(clean.dtype).nan_to_num(torch.inf)
        made = self.rendered(clean, parameters.detach().nan_to_num(0, 0, 0))
        same = (made - adversarial).abs().flatten(1).amax(1) <= SAME
        return torch.where(same, size, torch.inf)


def sampled(images: Tensor, rows: Tensor, columns: Tensor, padding: str) -> Tensor:
    """(B, C, H, W) bilinear samples of ``images`` at real positions, differentiable with respect to these.

    Args:
        rows, columns: (B, H, W) in pixels, counted from the middle of the first one. At whole numbers the pixel itself is given.
        padding: what lies outside: ``zeros``, or ``edge`` for the nearest pixel.
    """
    height, width = images.shape[2:]
    flat = images.flatten(2)
    top, left = rows.detach().floor(), columns.detach().floor()
    down, right = rows - top, columns - left
    found = torch.zeros_like(images)
    for row, in_row in ((top, 1 - down), (top + 1, down)):
        for column, in_column in ((left, 1 - right), (left + 1, right)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            at = row.clamp(0, height - 1).long() * width + column.clamp(0, width - 1).long()
            values = flat.gather(2, at.flatten(1).unsqueeze(1).expand(-1, flat.shape[1], -1)).view_as(images)
            share = in_row * in_column
            if padding == "zeros":
                share = share * inside
            found = found + share.unsqueeze(1) * values
    return found


def pixel_positions(images: Tensor) -> tuple[Tensor, Tensor]:
    """(H, W) the row and the column of each pixel, in the type of ``images``."""
    height, width = images.shape[2:]
    rows = torch.arange(height, dtype=images.dtype, device=images.device)
    columns = torch.arange(width, dtype=images.dtype, device=images.device)
    return rows.unsqueeze(1).expand(height, width), columns.unsqueeze(0).expand(height, width)
