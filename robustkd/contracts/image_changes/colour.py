"""The budget of recoloured images."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from robustkd.contracts.budget import Space
from robustkd.contracts.errors import AttackError, UsageError
from robustkd.contracts.image_changes.change import TransformBudget
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

MOST_CHANNELS = 3


@dataclass(frozen=True)
class ColourBudget(TransformBudget):
    """Every image that a function of the colour makes which moves each channel by at most ``eps``.

    All pixels of one colour get one colour. The function is given at the points of a grid over the colour cube, between which it is
    interpolated linearly in each channel. The parameters are the moves at these points, (C, resolution ** (C - 1), resolution) for images
    of C = 1 to 3 channels, the last channel changing fastest; colours are cut to the pixel range.

    Source: Laidlaw and Feizi: Functional adversarial attacks (NeurIPS 2019), arXiv:1906.00001, in RGB.

    Attributes:
        resolution: points along each axis of the grid.
    """

    eps: float
    resolution: int = 16
    kind: ClassVar[Space] = "colour"
    unit: ClassVar[str] = "share of a channel's range"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.resolution <= 64:
            raise UsageError(f"threat model: resolution is {self.resolution}", fix="give a whole number from 2 to 64")

    @override
    def shape(self, image: tuple[int, ...]) -> tuple[int, ...]:
        if image[0] > MOST_CHANNELS:
            raise AttackError(f"images of {image[0]} channels have no colour", fix="use images of 1 to 3 channels")
        return (image[0], self.resolution ** (image[0] - 1), self.resolution)

    @override
    def rendered(self, clean: Tensor, parameters: Tensor) -> Tensor:
        channels, most = clean.shape[1], self.resolution - 1
        place = clean.flatten(2) * most  # (B, C, H * W)
        low = place.floor().clamp(0, most - 1)
        high_share = place - low
        moves, moved = parameters.to(clean.dtype).flatten(2), torch.zeros_like(place)
        for corner in itertools.product((0, 1), repeat=channels):
            at, share = torch.zeros_like(low[:, 0]), torch.ones_like(low[:, 0])
            for channel, upper in enumerate(corner):
                at = at * self.resolution + low[:, channel] + upper
                share = share * (high_share[:, channel] if upper else 1 - high_share[:, channel])
            moved = moved + share.unsqueeze(1) * moves.gather(2, at.long().unsqueeze(1).expand(-1, channels, -1))
        return (clean + moved.view_as(clean)).clamp(0, 1)

    def __str__(self) -> str:
        return f"colour <= {self.eps:.4g}"
