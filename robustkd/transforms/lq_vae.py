"""LQ-VAE: an image goes through a few bits and is drawn again from them.

    mu, log s^2 = encoder(2x - 1)
    bit = sign(tau^2 - z^2)          z = mu in use;  z = mu + tau/2 * s * n,  n ~ N(0, I), in training
    x' = (decoder(bits) + 1) / 2

A second decoder, which is trained on soft bits softsign(500 (tau^2 - z^2)), teaches the encoder, since no gradient passes the sign.
The same soft bits are the surrogate that the bits declare.

Source: Kyatham et al.: Variational inference with latent space quantization for adversarial resilience (2019), arXiv:1903.09940;
layers, scales and losses as in the authors' code, but with upsampling before convolutions in place of transposed convolutions, so
that images of any size can be drawn. The released filter draws z in use too; here z is
the mean then, which is ours, so that the filter answers the same twice and an attack is not measured against luck.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from robustkd.contracts import Params, Transform
from robustkd.lazy import F, nn, torch

if TYPE_CHECKING:
    from torch import Tensor

_SLOPE = 500


class Bits(nn.Module):
    """z -> sign(tau^2 - z^2)."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, z: Tensor) -> Tensor:
        """(B, bits) -> 1 where |z| <= tau, else -1."""
        # A step function's gradient is zero, not missing: an attack that knows nothing of it runs, and gets nowhere.
        return torch.where(z.abs() <= self.threshold, 1.0, -1.0).to(z.dtype) + 0 * z

    def surrogate(self, z: Tensor) -> Tensor:
        """softsign(500 (tau^2 - z^2))."""
        return F.softsign(_SLOPE * (self.threshold**2 - z.square()))


class LQVAE(nn.Module):
    """The filter: encoder, bits, and the decoder of bits; ``soft_decoder`` is for training alone.

    Args:
        shape: (C, H, W).
        bits: how many.
        width: channels of the first layer.
        threshold: tau.
    """

    def __init__(self, shape: Sequence[int], bits: int, width: int, threshold: float) -> None:
        super().__init__()
        channels, height, width_px = shape
        sizes = [(height, width_px), (-(-height // 2), -(-width_px // 2)), (-(-height // 4), -(-width_px // 4))]
        self.encoder = nn.Sequential(
            *_layer(channels, width),
            *_layer(width, width, stride=2),
            *_layer(width, 2 * width, stride=2),
            *_layer(2 * width, 2 * width),
            nn.Flatten(),
            nn.Linear(2 * width * sizes[2][0] * sizes[2][1], 16 * width),
            nn.LeakyReLU(0.2),
        )
        self.mean, self.log_variance = nn.Linear(16 * width, bits), nn.Linear(16 * width, bits)
        self.bits = Bits(threshold)
        self.decoder = _decoder(bits, width, channels, sizes)
        self.soft_decoder = _decoder(bits, width, channels, sizes)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> the same, drawn from the bits of mu."""
        drawn: Tensor = self.decoder(self.bits(self.mean(self.encoder(2 * images - 1))))
        return (drawn + 1) / 2


def _layer(channels: int, out: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(channels, out, 3, stride=stride, padding=1), nn.LeakyReLU(0.2)]


def _decoder(bits: int, width: int, channels: int, sizes: Sequence[tuple[int, int]]) -> nn.Sequential:
    full, half, quarter = sizes
    return nn.Sequential(
        nn.Linear(bits, 16 * width),
        nn.LeakyReLU(0.2),
        nn.Linear(16 * width, 2 * width * quarter[0] * quarter[1]),
        nn.LeakyReLU(0.2),
        nn.Unflatten(1, (2 * width, *quarter)),
        *_layer(2 * width, 2 * width),
        nn.Upsample(half),
        *_layer(2 * width, 2 * width),
        nn.Upsample(full),
        *_layer(2 * width, width),
        nn.Conv2d(width, channels, 3, padding=1),
        nn.Tanh(),
    )


class LQVAEParams(Params):
    bits: int = Field(64, ge=1, description="bits that are left of an image")
    width: int = Field(64, ge=1, description="channels of the first layer")
    threshold: float = Field(0.1, gt=0, description="tau: a bit is 1 where the latent lies within tau of 0")


class LQVAEFilter(Transform):
    """An image drawn again from a few bits; it must be trained, which the defense of the same name does."""

    Params: ClassVar[type[Params]] = LQVAEParams
    learns = True
    source = "Kyatham et al. 2019, arXiv:1903.09940"

    @override
    def build(self, input_shape: Sequence[int]) -> nn.Module:
        p = self.params
        return LQVAE(input_shape, p.bits, p.width, p.threshold)
