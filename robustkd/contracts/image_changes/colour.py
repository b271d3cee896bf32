"""The budget of recoloured images."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from typing_extensions import override

from robustkd.contracts.budget import Space, require_one_of
from robustkd.contracts.errors import AttackError, UsageError
from robustkd.contracts.image_changes.change import LATER, TransformBudget
from robustkd.contracts.image_changes.cieluv import luv_of_rgb, rgb_of_luv
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

MOST_CHANNELS = 3
ColourSpace = Literal["rgb", "luv"]
"""In which colours are moved."""


@dataclass(frozen=True)
class ColourBudget(TransformBudget):
    """Every image that a function of the colour makes which moves each channel by at most ``eps``.

    All pixels of one colour get one colour. The function is given at the points of a grid over the colour cube, between which it is
    interpolated linearly in each channel. The parameters are the moves at these points, (C, resolution ** (C - 1), resolution) for images
    of C = 1 to 3 channels, the last channel changing fastest; colours are cut to the pixel range.

    Source: Laidlaw and Feizi: Functional adversarial attacks (NeurIPS 2019), arXiv:1906.00001, who have both spaces.

    Attributes:
        resolution: points along each axis of the grid.
        colour_space: in which colours are moved: ``rgb``, or ``luv`` for CIELUV, whose distances are nearly those that the eye sees;
            ``eps`` is then a share of the range that L*, u* and v* have.
    """

    eps: float
    resolution: int = 16
    colour_space: ColourSpace = field(default="rgb", metadata={LATER: True})
    kind: ClassVar[Space] = "colour"
    unit: ClassVar[str] = "share of a channel's range"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of("colour_space", self.colour_space, *get_args(ColourSpace))
        if not 2 <= self.resolution <= 64:
            raise UsageError(f"threat model: resolution is {self.resolution}", fix="give a whole number from 2 to 64")

    @override
    def shape(self, image: tuple[int, ...]) -> tuple[int, ...]:
        if image[0] > MOST_CHANNELS:
            raise AttackError(f"images of {image[0]} channels have no colour", fix="use images of 1 to 3 channels")
        if self.colour_space == "luv" and image[0] != MOST_CHANNELS:
            raise AttackError(f"images of {image[0]} channels have no colour in CIELUV", fix="use images of 3 channels, or rgb")
        return (image[0], self.resolution ** (image[0] - 1), self.resolution)

    @override
    def rendered(self, clean: Tensor, parameters: Tensor) -> Tensor:
        if self.colour_space == "rgb":
            return (clean + self._moves(clean, parameters)).clamp(0, 1)
        colours = luv_of_rgb(clean)
        moved = rgb_of_luv(colours + self._moves(colours.clamp(0, 1), parameters))
        return (clean + (moved - rgb_of_luv(colours))).clamp(0, 1)  # as it is where nothing is moved

    def _moves(self, colours: Tensor, parameters: Tensor) -> Tensor:
        """How each (B, C, H, W) colour in [0, 1] is moved."""
        channels, most = colours.shape[1], self.resolution - 1
        place = colours.flatten(2) * most  # (B, C, H * W)
        low = place.floor().clamp(0, most - 1)
        high_share = place - low
        moves, moved = parameters.to(colours.dtype).flatten(2), torch.zeros_like(place)
        for corner in itertools.product((0, 1), repeat=channels):
            at, share = torch.zeros_like(low[:, 0]), torch.ones_like(low[:, 0])
            for channel, upper in enumerate(corner):
                at = at * self.resolution + low[:, channel] + upper
                share = share * (high_share[:, channel] if upper else 1 - high_share[:, channel])
            moved = moved + share.unsqueeze(1) * moves.gather(2, at.long().unsqueeze(1).expand(-1, channels, -1))
        return moved.view_as(colours)

    def __str__(self) -> str:
        return f"colour <= {self.eps:.4g}{' in CIELUV' if self.colour_space == 'luv' else ''}"
