"""The budget of displaced pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from robustkd.contracts.budget import Space
from robustkd.contracts.image_changes.change import TransformBudget, pixel_positions, sampled

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class FlowBudget(TransformBudget):
    """Every image whose pixels are taken, bilinearly, from at most ``eps`` pixels away along each axis.

    The parameters are the flow, (2, H, W): how far below and to the right of itself each pixel is taken from, in pixels. Outside the
    image its edge is repeated.

    Source: Xiao et al.: Spatially transformed adversarial examples (ICLR 2018), arXiv:1801.02612, who penalise a rough flow and do
    not bound it; the bound is ours.
    """

    eps: float
    kind: ClassVar[Space] = "flow"
    unit: ClassVar[str] = "pixels"

    @override
    def shape(self, image: tuple[int, ...]) -> tuple[int, ...]:
        return (2, *image[1:])

    @override
    def rendered(self, clean: Tensor, parameters: Tensor) -> Tensor:
        rows, columns = pixel_positions(clean)
        down, right = parameters.to(clean.dtype).unbind(1)
        return sampled(clean, rows + down, columns + right, "edge")

    def __str__(self) -> str:
        return f"flow <= {self.eps:.4g} pixels"
