"""A generator of one perturbation. Importing it imports torch, so whoever builds one imports it then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from robustkd.lazy import nn

if TYPE_CHECKING:
    from torch import Tensor

NOISE = 100
"""How many random numbers it is given."""
_UP = 4


class Generator(nn.Module):
    """Noise -> an image in [-1, 1]: a linear layer to a fourth of its size, and convolutions on the way up.

    Args:
        shape: (C, H, W).
        width: channels in between.
    """

    def __init__(self, shape: Sequence[int], width: int) -> None:
        super().__init__()
        channels, self.height, self.width = shape
        self._start = (2 * width, -(-self.height // _UP), -(-self.width // _UP))
        self.linear = nn.Linear(NOISE, self._start[0] * self._start[1] * self._start[2])
        self.body = nn.Sequential(
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(2 * width, width, 3, padding=1),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(width, channels, 3, padding=1),
            nn.Tanh(),
        )

    def forward(self, noise: Tensor) -> Tensor:
        """(B, 100) -> (B, C, H, W)."""
        image: Tensor = self.body(self.linear(noise).unflatten(1, self._start))
        return image[..., : self.height, : self.width]
