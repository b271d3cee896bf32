"""Random resizing and padding: each image shrunk to a random size and put at a random place on black."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from robustkd.contracts import Params, Transform
from robustkd.lazy import F, nn, torch

if TYPE_CHECKING:
    from torch import Tensor


def shrunk(x: Tensor, scale: Tensor, place: Tensor) -> Tensor:
    """Each image at ``scale`` of its size, at ``place`` in a canvas of its size, zeros around it; differentiable.

    Args:
        x: (A, C, H, W).
        scale: (A,) in (0, 1].
        place: (A, 2) in [-1, 1], from the left and upper to the right and lower edge.
    """
    shift = -place * ((1 - scale) / scale).unsqueeze(1)
    zoom = torch.diag_embed((1 / scale).unsqueeze(1).expand(-1, 2))
    grid = F.affine_grid(torch.cat([zoom, shift.unsqueeze(2)], 2), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


class ResizePadParams(Params):
    smallest: float = Field(0.9, gt=0, le=1, description="smallest size to shrink to, as a share of the image's")


class ResizeAndPad(nn.Module):
    """A size and a place of its own for each image and each pass. It can be differentiated; randomness is its whole defense."""

    def __init__(self, smallest: float) -> None:
        super().__init__()
        self.smallest = smallest

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        draws = torch.rand(len(images), 3, dtype=images.dtype, device=images.device)
        return shrunk(images, self.smallest + (1 - self.smallest) * draws[:, 0], 2 * draws[:, 1:] - 1)


class ResizePad(Transform):
    """Random resizing and padding. The paper pads 299 pixels to 331; here the canvas keeps its size, for any network."""

    Params: ClassVar[type[Params]] = ResizePadParams
    source = "Xie et al.: Mitigating adversarial effects through randomization (ICLR 2018), arXiv:1711.01991"

    @override
    def build(self, input_shape: Sequence[int]) -> nn.Module:
        return ResizeAndPad(self.params.smallest)
