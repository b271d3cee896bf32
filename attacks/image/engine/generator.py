"""A generator of one perturbation. Importing it imports torch, so whoever builds one imports it then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from robustkd.lazy import nn

if TYPE_CHECKING:
    from torch import Tensor

NOISE = 100
"""How many random numbers there are in a row of noise."""
_UP = 4
_SPREAD = 0.02
"""Of the first weights, as in a DCGAN."""


class Generator(nn.Module):
    """Rows of noise -> one image without bounds: each row becomes an image in [-1, 1], and a convolution over the rows mixes them.

    Mixed of many images it moves far in few steps, also with the small steps that each of its weights makes.

    Args:
        shape: (C, H, W).
        width: channels in between.
        rows: of noise.

    Source: the generator of a DCGAN with the last layer of AdvEncoder's (CGCL-codes/AdvEncoder, model/adv_gan.py).
    """

    def __init__(self, shape: Sequence[int], width: int, rows: int) -> None:
        super().__init__()
        channels, self.height, self.width = shape
        self._start = (2 * width, -(-self.height // _UP), -(-self.width // _UP))
        self.linear = nn.Linear(NOISE, self._start[0] * self._start[1] * self._start[2])
        self.body = nn.Sequential(
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1),
            nn.Tanh(),
        )
        self.mix = nn.Conv2d(rows, 1, 3, padding=1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear) and layer.bias is not None:
                nn.init.normal_(layer.weight, std=_SPREAD)
                nn.init.zeros_(layer.bias)

    def forward(self, noise: Tensor) -> Tensor:
        """(rows, 100) -> (1, C, H, W)."""
        images = self.body(self.linear(noise).unflatten(1, self._start))[..., : self.height, : self.width]
        mixed: Tensor = self.mix(images.transpose(0, 1)).transpose(0, 1)
        return mixed
