"""The budget of rotations and translations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from typing_extensions import override

from robustkd.contracts.budget import Space, require_one_of
from robustkd.contracts.errors import UsageError
from robustkd.contracts.image_changes.change import TransformBudget, pixel_positions, sampled
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

Padding = Literal["zeros", "edge"]
"""What is seen outside an image: black, or its nearest pixel."""


@dataclass(frozen=True)
class SpatialBudget(TransformBudget):
    """Every image that a rotation about the centre and a shift make, sampled bilinearly.

    The parameters are (angle, shift to the right, shift down), each as a share of the largest that is allowed.

    Source: Engstrom et al.: Exploring the landscape of spatial robustness (ICML 2019), arXiv:1712.02779.

    Attributes:
        rotation: degrees, at most, either way.
        translation: share of the image's width and height, at most, either way.
        padding: what is seen outside the image.
        eps: the share of these that is allowed; a curve goes over it.
    """

    rotation: float
    translation: float = 0.0
    padding: Padding = "zeros"
    eps: float = 1.0
    kind: ClassVar[Space] = "spatial"
    unit: ClassVar[str] = "share of the budget"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of("padding", self.padding, *get_args(Padding))
        for name, most in (("rotation", 180), ("translation", 1)):
            if not 0 <= getattr(self, name) <= most:
                unit = "degrees" if name == "rotation" else "shares of the side: 3 pixels of 32 are 3/32"
                raise UsageError(f"threat model: {name} is {getattr(self, name):g}", fix=f"give 0 to {most}, in {unit}")

    @override
    def shape(self, image: tuple[int, ...]) -> tuple[int, ...]:
        return (3,)

    @override
    def rendered(self, clean: Tensor, parameters: Tensor) -> Tensor:
        height, width = clean.shape[2:]
        angle, right, down = (part.view(-1, 1, 1) for part in parameters.to(clean.dtype).unbind(1))
        angle = angle * math.radians(self.rotation)
        rows, columns = pixel_positions(clean)
        middle_row, middle_column = (height - 1) / 2, (width - 1) / 2
        y = rows - middle_row - down * (self.translation * height)
        x = columns - middle_column - right * (self.translation * width)
        cosine, sine = torch.cos(angle), torch.sin(angle)
        from_rows, from_columns = cosine * y - sine * x + middle_row, cosine * x + sine * y + middle_column
        return sampled(clean, from_rows, from_columns, self.padding)

    def __str__(self) -> str:
        edge = ", edges repeated" if self.padding == "edge" else ""
        return f"rotation <= {self.eps * self.rotation:.4g}°, translation <= {100 * self.eps * self.translation:.4g} %{edge}"
