"""Noise on latents, drawn on the CPU so that it is the same on every device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustkd.lazy import torch
from robustkd.targets.text_to_image import TextToImageTarget

if TYPE_CHECKING:
    from torch import Tensor


def noised(target: TextToImageTarget, latents: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """(z_t, noise, t) for (B, C', H', W') latents, t uniform over the noise levels."""
    t = torch.randint(target.timesteps, (len(latents),), generator=generator).to(target.device)
    noise = torch.randn(latents.shape, generator=generator).to(target.device)
    return target.add_noise(latents, noise, t), noise, t
