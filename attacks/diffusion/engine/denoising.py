"""How well a diffusion model sees the noise in a picture, given what is asked: small where it still knows what the picture shows.

    error(c) = mean over pixels of ( noise - eps(z_t | c) )^2,   z_t = sqrt(a_t) z_0 + sqrt(1 - a_t) noise

with ``z_0`` the latents of a picture of the concept. The model is its own classifier: nothing else is in the loop. A model that
was trained to predict something else than the noise (velocity, say) is compared with that: in terms of the noise, the high levels,
at which is decided what a picture shows, would weigh next to nothing.

Source: Li et al.: Your diffusion model is secretly a zero-shot classifier (ICCV 2023), section 3; Zhang et al.: To generate or
not? (ECCV 2024), section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from pydantic import Field

from robustkd.contracts import DataError, PromptAttack, Prompts
from robustkd.contracts.params import AddedLater
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch
from robustkd.targets.guarded_drawing import BehindDrawingGuards
from robustkd.targets.memory import in_memory
from robustkd.targets.text_encoders import Conditioning
from robustkd.targets.text_to_image import TextToImageTarget

if TYPE_CHECKING:
    from torch import Tensor


Levels: TypeAlias = Literal["all", "drawing"]
LevelsParam: TypeAlias = Annotated[
    Levels,
    AddedLater(),
    Field(
        description="at which noise levels a picture is looked at: all, or those that drawing passes through. A model that was distilled "
        "to draw in one step knows only the last one"
    ),
]


def level(block: int, blocks: int, timesteps: int) -> int:
    """The timestep in the middle of part ``block`` of ``blocks`` equal parts: 10, 30, .. 990 for 50 parts of 1,000."""
    return int((block + 0.5) / blocks * timesteps)


@dataclass(frozen=True, eq=False)
class Denoising:
    """The error of a target on one picture for each request.

    Attributes:
        latents: (N, C', H', W'), what the pictures are to the target.
        blocks: into how many parts the noise levels are cut; the search goes through them in order.
        at_once: levels in each step, spread evenly over all of them.
        original: a model and what it is told of the N requests: its prediction is wanted in the place of the noise itself.
        visited: the noise levels that are asked about, in order; None for all of them, from the least on.
    """

    target: TextToImageTarget
    latents: Tensor
    blocks: int
    at_once: int = 1
    original: tuple[TextToImageTarget, Conditioning] | None = None
    visited: Sequence[int] | None = None

    @property
    def forwards(self) -> int:
        """Passes of UNets in one step, for each request."""
        return self.at_once * (1 if self.original is None else 2)

    @property
    def backwards(self) -> int:
        """Backward passes of one step, for each request."""
        return self.at_once

    def __call__(self, rows: Tensor, embedded: Tensor, block: int, rng: SampleRng) -> Tensor:
        """The denoising error of each request: (B,) values to minimize."""
        return self.error(rows, self.target.encode(embeddings=embedded), block, rng)

    def error(self, rows: Tensor, hidden: Conditioning, block: int, rng: SampleRng) -> Tensor:
        """(B,) the mean over pixels and noise levels, given what the UNet is told of their B prompts.

        Args:
            rows: (B,) the requests.
            rng: their streams; every call draws fresh noise.
        """
        m = self.at_once
        parts = [(block + round(j * self.blocks / m)) % self.blocks for j in range(m)]
        levels = torch.tensor([self._level(part) for part in parts], device=hidden.tokens.device)
        t = levels.repeat(len(rows))
        z = self.latents[rows].repeat_interleave(m, 0)
        noise = rng.normal((m, *self.latents.shape[1:])).flatten(0, 1).to(z)
        noisy = self.target.add_noise(z, noise, t)
        wanted = self.target.training_target(z, noise, t)
        if self.original is not None:
            model, asked = self.original
            with torch.no_grad():
                wanted = model.unet_output(noisy, t, asked[rows].repeat_interleave(m)).to(z.device)
        seen = self.target.unet_output(noisy, t, hidden.repeat_interleave(m))
        error = (wanted.float() - seen.float()).square().reshape(len(rows), -1).mean(1)
        if isinstance(self.target, BehindDrawingGuards):
            alarm = self.target.alarm(noisy, t, hidden.repeat_interleave(m))
            error = error + (alarm.reshape(len(rows), -1).mean(1) if isinstance(alarm, torch.Tensor) else alarm)
        return error

    def _level(self, part: int) -> int:
        if self.visited is None:
            return level(part, self.blocks, self.target.timesteps)
        return self.visited[part * len(self.visited) // self.blocks]


def levels_of(target: TextToImageTarget, which: Levels) -> Sequence[int] | None:
    """The noise levels that an attack asks about, see ``Denoising.visited``."""
    return None if which == "all" else sorted(int(t) for t in target.sampling_times())


def pictures(target: TextToImageTarget, requests: Prompts, original: TextToImageTarget | None) -> Tensor:
    """(N, C', H', W') latents of what each request should have shown: the data's images, else what ``original`` draws.

    Raises:
        DataError: there are neither, or the images are not of the model's size.
    """
    if requests.images is not None:
        images = torch.from_numpy(requests.images)
        images = images.float() / 255 if images.dtype == torch.uint8 else images
    elif original is not None:
        # Noise is seen in pictures of one size, the model's own, whatever the attempts are drawn at.
        images = torch.stack(list(original.respond([replace(question, size=None) for question in requests.asked()])))
    else:
        raise DataError(
            "the attack aims at a picture of what each request should show, and the data have no images",
            fix="give it 'original', the defense whose model still draws the concept, or data with images",
        )
    with torch.no_grad():
        latents = torch.cat(in_memory(target.latents, images, 8))
    if latents.shape[1:] != target.latent_shape:
        raise DataError(
            f"the data's images are {tuple(images.shape[1:])}, which makes latents of {tuple(latents.shape[1:])}; the model draws "
            f"from {target.latent_shape}",
            fix="give images of the size that the model draws",
        )
    return latents


class DenoisingAttack(PromptAttack[TextToImageTarget]):
    """An attack by the denoising error; its parameters have ``timesteps``, ``levels`` and ``original``."""

    modalities = ("text-to-image",)
    needs = PromptAttack.needs | {"tokens", "embeddings", "denoising"}
    needs_of_others = frozenset({"respond", "denoising"})
    gradients = True

    def error(self, target: TextToImageTarget, requests: Prompts, blocks: int) -> Denoising:
        """The error on the pictures of the requests, drawn by ``original`` where the data have none.

        Raises:
            DataError: see ``pictures``.
        """
        p = self.params
        images = pictures(target, requests, self.target(p.original, TextToImageTarget) if p.original else None)
        return Denoising(target, images, blocks, p.timesteps, visited=levels_of(target, p.levels))
