"""The common corruptions: what weather, cameras and files do to images, each at five severities.

A family maps images (B, C, H, W) in [0, 1], grey or in colour and of any size, to corrupted ones. Settings are those that make
CIFAR-10-C of 32 x 32 images; lengths grow with the image's shorter side. Every random number belongs to its sample.

Where the benchmark's own files or libraries are needed, something of the same look stands in: plasma is a sum of octaves of noise, frost
is grown from it (the benchmark blends photographs of frost), glass shows each pixel a random neighbour instead of exchanging the two.
So numbers compare within this tool; they are no CIFAR-10-C scores.

Source: Hendrycks, Dietterich: Benchmarking neural network robustness to common corruptions and perturbations (ICLR 2019); settings of
the authors' make_cifar_c.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from scipy.special import pdtrik

from robustkd.contracts.random import SampleRng
from robustkd.lazy import F, torch

if TYPE_CHECKING:
    from torch import Tensor

GROUPS: dict[str, tuple[str, ...]] = {
    "noise": ("gaussian-noise", "shot-noise", "impulse-noise"),
    "blur": ("defocus-blur", "glass-blur", "motion-blur", "zoom-blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic", "pixelate", "jpeg"),
}
FAMILIES: tuple[str, ...] = tuple(family for group in GROUPS.values() for family in group)
SEVERITIES = (1, 2, 3, 4, 5)


def corrupted(x: Tensor, family: str, severity: int, rng: SampleRng) -> Tensor:
    """The corrupted images, (B, C, H, W) in [0, 1].

    Args:
        x: images.
        family: one of ``FAMILIES``.
        severity: 1 to 5.
        rng: a stream for each image; another family or severity draws other numbers.
    """
    corrupt, settings = _TABLE[family]
    return corrupt(x, settings[severity - 1], rng.fork(f"{family}/{severity}")).clamp(0, 1).to(x.dtype)


# --- noise -------------------------------------------------------------------------------------------------------------


def _gaussian_noise(x: Tensor, deviation: float, rng: SampleRng) -> Tensor:
    return x + deviation * rng.normal(x.shape[1:], dtype=x.dtype)


def _shot_noise(x: Tensor, photons: float, rng: SampleRng) -> Tensor:
    """Poisson counts of ``photons`` for a white pixel, by the inverse of their distribution."""
    uniform = rng.uniform(x.shape[1:]).cpu().double()  # its 24 bits are exact in float32, and some devices have no float64
    counts = torch.from_numpy(pdtrik(uniform.numpy(), (x.cpu().double() * photons).numpy()))
    return (counts.nan_to_num(0).ceil().clamp_min(0) / photons).to(x)


def _impulse_noise(x: Tensor, share: float, rng: SampleRng) -> Tensor:
    drawn = rng.uniform(x.shape[1:])
    return torch.where(drawn < share / 2, 0.0, torch.where(drawn < share, 1.0, x))


# --- blur --------------------------------------------------------------------------------------------------------------


def _defocus_blur(x: Tensor, setting: tuple[float, float], rng: SampleRng) -> Tensor:
    radius, alias = setting[0] * _scale(x), setting[1]
    reach = math.ceil(radius + 0.5)
    at = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
    # Its border is a pixel wide: radii below a pixel differ too.
    disk = (radius + 0.5 - (at[:, None] ** 2 + at**2).sqrt()).clamp(0, 1)
    edge = _bell(1, alias, x)
    disk = F.conv2d(disk[None, None], (edge[:, None] * edge)[None, None], padding=2)[0, 0]
    return _filtered(x, disk / disk.sum())


def _glass_blur(x: Tensor, setting: tuple[float, int, int], rng: SampleRng) -> Tensor:
    sigma, reach, times = setting[0] * _scale(x), max(1, round(setting[1] * _scale(x))), setting[2]
    x = _blurred(x, sigma)
    rows, columns = _pixel_positions(x)
    for _ in range(times):
        offset = rng.integers((2, *x.shape[2:]), 2 * reach) - reach
        x = _warped(x, rows + offset[:, 0], columns + offset[:, 1])
    return _blurred(x, sigma)


def _motion_blur(x: Tensor, setting: tuple[float, float], rng: SampleRng) -> Tensor:
    return _dragged(x, *setting, angle=rng.uniform((), -45, 45))


def _zoom_blur(x: Tensor, largest: float, rng: SampleRng) -> Tensor:
    factors = torch.arange(1, largest, 0.01).tolist()
    return torch.stack([x, *(_zoomed(x, factor) for factor in factors)]).mean(0)


# --- weather -----------------------------------------------------------------------------------------------------------


def _snow(x: Tensor, setting: tuple[float, ...], rng: SampleRng) -> Tensor:
    mean, deviation, size, threshold, radius, sigma, dimmed = setting
    flakes = _zoomed(mean + deviation * rng.normal((1, *x.shape[2:]), dtype=x.dtype), size)
    flakes = torch.where(flakes < threshold, 0.0, flakes).clamp(0, 1)
    flakes = _dragged(flakes, radius, sigma, angle=rng.uniform((), -135, -45))
    x = dimmed * x + (1 - dimmed) * torch.maximum(x, 1.5 * _grey(x) + 0.5)
    return x + flakes + torch.rot90(flakes, 2, (2, 3))


def _frost(x: Tensor, setting: tuple[float, float], rng: SampleRng) -> Tensor:
    kept, opacity = setting
    crystals = 1 - (2 * _plasma(x, 1.4, rng) - 1).abs()
    return kept * x + opacity * crystals**2


def _fog(x: Tensor, setting: tuple[float, float], rng: SampleRng) -> Tensor:
    density, decay = setting
    brightest = x.flatten(1).amax(1).view(-1, 1, 1, 1)
    return (x + density * _plasma(x, decay, rng)) * brightest / (brightest + density)


def _brightness(x: Tensor, added: float, rng: SampleRng) -> Tensor:
    """The value of hue, saturation and value grows; a black pixel becomes grey."""
    value = x.amax(1, keepdim=True)
    brighter = (value + added).clamp_max(1)
    return torch.where(value > 0, x / value.clamp_min(1e-12), 1.0) * brighter


# --- digital -----------------------------------------------------------------------------------------------------------


def _contrast(x: Tensor, left: float, rng: SampleRng) -> Tensor:
    mean = x.mean((2, 3), keepdim=True)
    return (x - mean) * left + mean


def _elastic(x: Tensor, setting: tuple[float, float, float], rng: SampleRng) -> Tensor:
    """An affine map that moves three points at random, then a smooth random field; all in shares of the image's side."""
    strength, smoothness, jitter = (share * min(x.shape[2:]) for share in setting)
    rows, columns = _pixel_positions(x)
    centre = torch.tensor([(side - 1) / 2 for side in x.shape[2:]], device=x.device, dtype=rows.dtype)
    third = min(x.shape[2:]) // 3
    points = centre + third * torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]], device=x.device, dtype=rows.dtype)
    moved = points + rng.uniform((3, 2), -jitter, jitter)
    # Where each point of the result comes from: an affine function that takes the moved points back.
    corners = torch.cat([moved, torch.ones(len(x), 3, 1, device=x.device, dtype=rows.dtype)], 2)
    back = torch.linalg.solve(corners, points.expand(len(x), -1, -1))
    here = torch.stack([rows, columns, torch.ones_like(rows)], -1).flatten(0, 1).expand(len(x), -1, -1)
    source = (here @ back).view(len(x), *x.shape[2:], 2)
    if strength:
        field = _blurred(rng.uniform((2, *x.shape[2:]), -1, 1), smoothness, truncate=3)
        source = source + strength * field.movedim(1, 3)
    return _warped(x, source[..., 0], source[..., 1])


def _pixelate(x: Tensor, share: float, rng: SampleRng) -> Tensor:
    small = [max(1, int(side * share)) for side in x.shape[2:]]
    return F.interpolate(F.interpolate(x, small, mode="area"), list(x.shape[2:]), mode="nearest")


def _jpeg(x: Tensor, quality: int, rng: SampleRng) -> Tensor:
    from robustkd.transforms.jpeg import Compress  # late: it imports torch

    compressed: Tensor = Compress(quality)(x)
    return compressed


# --- parts -------------------------------------------------------------------------------------------------------------


def _scale(x: Tensor) -> float:
    """The factor from the benchmark's lengths to those of these images; at least a half, since a shorter blur would be none."""
    return max(min(x.shape[2:]) / 32, 0.5)


def _grey(x: Tensor) -> Tensor:
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    return (x * torch.tensor([0.299, 0.587, 0.114], device=x.device, dtype=x.dtype).view(1, 3, 1, 1)).sum(1, keepdim=True)


def _bell(reach: int, sigma: float, like: Tensor) -> Tensor:
    at = torch.arange(-reach, reach + 1, dtype=like.dtype, device=like.device)
    weights = torch.exp(-(at**2) / (2 * max(sigma, 1e-3) ** 2))
    return weights / weights.sum()


def _filtered(x: Tensor, kernel: Tensor) -> Tensor:
    """Convolve each channel with a kernel of odd sides; the border is replicated."""
    high, wide = kernel.shape
    padded = F.pad(x, [wide // 2, wide // 2, high // 2, high // 2], mode="replicate")
    return F.conv2d(padded.flatten(0, 1).unsqueeze(1), kernel[None, None]).view_as(x)


def _blurred(x: Tensor, sigma: float, truncate: float = 4) -> Tensor:
    bell = _bell(max(1, round(truncate * sigma)), sigma, x)
    return _filtered(_filtered(x, bell[None]), bell[:, None])


def _pixel_positions(x: Tensor) -> tuple[Tensor, Tensor]:
    """The (H, W) row and the (H, W) column of every pixel."""
    sides = [torch.arange(side, dtype=torch.float32, device=x.device) for side in x.shape[2:]]
    rows, columns = torch.meshgrid(*sides, indexing="ij")
    return rows, columns


def _warped(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Interpolate (B, C, H, W) images at (B, H, W) positions; the border is replicated."""
    high, wide = x.shape[2:]
    grid = torch.stack([2 * columns / max(wide - 1, 1) - 1, 2 * rows / max(high - 1, 1) - 1], -1)
    grid = grid.expand(len(x), -1, -1, -1).to(x.dtype)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=True)


def _zoomed(x: Tensor, factor: float) -> Tensor:
    """The middle of the image, ``factor`` times as large."""
    rows, columns = _pixel_positions(x)
    high, wide = ((side - 1) / 2 for side in x.shape[2:])
    return _warped(x, high + (rows - high) / factor, wide + (columns - wide) / factor)


def _dragged(x: Tensor, radius: float, sigma: float, angle: Tensor) -> Tensor:
    """Blur in one direction, (B,) in degrees: half a bell, of 2 * radius pixels at most."""
    radius, sigma = radius * _scale(x), sigma * _scale(x)
    rows, columns = _pixel_positions(x)
    down, right = (part.view(-1, 1, 1) for part in (torch.sin(torch.deg2rad(angle)), torch.cos(torch.deg2rad(angle))))
    steps = range(min(math.ceil(2 * radius), math.ceil(4 * sigma)) + 1)
    weights = [math.exp(-(step**2) / (2 * sigma**2)) for step in steps]
    moved = (w * _warped(x, rows + step * down, columns + step * right) for w, step in zip(weights, steps, strict=True))
    return torch.stack(list(moved)).sum(0) / sum(weights)


def _plasma(x: Tensor, decay: float, rng: SampleRng) -> Tensor:
    """(B, 1, H, W) clouds from 0 to 1 in each image: octaves of noise, each ``decay`` times as weak as the one before."""
    total = torch.zeros(len(x), 1, *x.shape[2:], dtype=x.dtype, device=x.device)
    for octave in range(math.ceil(math.log2(max(x.shape[2:]))) + 1):
        cells = 2**octave + 1
        noise = rng.uniform((1, cells, cells), -1, 1, dtype=x.dtype)
        total = total + F.interpolate(noise, list(x.shape[2:]), mode="bilinear", align_corners=True) / decay**octave
    low, high = total.flatten(1).amin(1), total.flatten(1).amax(1)
    return (total - low.view(-1, 1, 1, 1)) / (high - low).clamp_min(1e-12).view(-1, 1, 1, 1)


_TABLE: dict[str, tuple[Callable[[Tensor, Any, SampleRng], Tensor], tuple[Any, ...]]] = {
    "gaussian-noise": (_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot-noise": (_shot_noise, (500, 250, 100, 75, 50)),
    "impulse-noise": (_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus-blur": (_defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    "glass-blur": (_glass_blur, ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))),
    "motion-blur": (_motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
    "zoom-blur": (_zoom_blur, (1.06, 1.11, 1.16, 1.21, 1.26)),
    "snow": (
        _snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
    "frost": (_frost, ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))),
    "fog": (_fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "brightness": (_brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "elastic": (_elastic, ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03))),
    "pixelate": (_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg": (_jpeg, (80, 65, 58, 50, 40)),
}
