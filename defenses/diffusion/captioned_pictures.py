"""Pictures of the data with their captions, as trainings on them draw them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from robustkd.contracts import DataError, Prompts
from robustkd.data.arrays import as_arrays
from robustkd.defenses.diffusion.noise import noised
from robustkd.lazy import torch
from robustkd.targets.text_to_image import TextToImageTarget

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class CaptionedPictures:
    """Images (N, C, H, W) in [0, 1] and their texts."""

    images: Tensor
    texts: tuple[str, ...]

    @classmethod
    def of(cls, prompts: Prompts, texts: tuple[str, ...]) -> CaptionedPictures:
        """The images of N prompts, each with one of N ``texts``.

        Raises:
            DataError: the prompts have no images.
        """
        if prompts.images is None:
            raise DataError(
                "the training captions have no images", fix="use a data set of captioned images, or another defense"
            )
        return cls(torch.from_numpy(as_arrays(prompts.images, prompts.labels, "captions").unit()), texts)

    def latents(self, target: TextToImageTarget, count: int, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        """(z_0, texts) of ``count`` of them, drawn evenly; z_0 is (count, C', H', W') without a gradient."""
        rows = torch.randint(len(self.texts), (count,), generator=generator)
        with torch.no_grad():
            return target.latents(self.images[rows]), [self.texts[row] for row in rows.tolist()]

    def draw(
        self, target: TextToImageTarget, count: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor, list[str]]:
        """(z_t, what the UNet should say of it, t, texts) of ``count`` of them."""
        latents, texts = self.latents(target, count, generator)
        with torch.no_grad():
            z, noise, t = noised(target, latents, generator)
        return z, target.training_target(latents, noise, t), t, texts
