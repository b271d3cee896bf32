"""JPEG: images are compressed and read back, by the real codec."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from PIL import Image
from pydantic import Field

from robustkd.contracts import Params, Transform, UsageError
from robustkd.lazy import nn, torch

if TYPE_CHECKING:
    from torch import Tensor


class JPEGParams(Params):
    quality: int = Field(75, ge=1, le=95, description="of the compression, as Pillow counts it")


class Compress(nn.Module):
    """Pillow's JPEG, image by image on the CPU. Its gradient is zero; as a surrogate it declares the identity."""

    def __init__(self, quality: int) -> None:
        super().__init__()
        self.quality = quality

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> the same, in 256 levels; images that are not RGB channel by channel, as grey ones."""
        pixels = (images.detach().clamp(0, 1) * 255).round().to("cpu", torch.uint8).movedim(1, 3).numpy()
        read = np.stack([self._compressed(image) for image in pixels])
        # A step function's gradient is zero, not missing: an attack that knows nothing of it runs, and gets nowhere.
        return torch.from_numpy(read).reshape(pixels.shape).movedim(3, 1).to(images) / 255 + 0 * images

    def surrogate(self, images: Tensor) -> Tensor:
        """The identity: the compressed image's gradient is that of the image."""
        return images

    def _compressed(self, image: np.ndarray) -> np.ndarray:
        if image.ndim == 3 and image.shape[2] != 3:
            return np.stack([self._compressed(channel) for channel in np.moveaxis(image, 2, 0)], 2)
        file = io.BytesIO()
        Image.fromarray(image).save(file, "jpeg", quality=self.quality)
        return np.asarray(Image.open(file))


class JPEG(Transform):
    """JPEG compression."""

    Params: ClassVar[type[Params]] = JPEGParams
    source = "Guo et al.: Countering adversarial images using input transformations (ICLR 2018), arXiv:1711.00117"

    def build(self, input_shape: Sequence[int]) -> nn.Module:
        """The stage.

        Raises:
            UsageError: the images are neither grey nor RGB.
        """
        if input_shape[0] not in (1, 3):
            raise UsageError(f"JPEG knows grey and RGB images, these have {input_shape[0]} channels")
        return Compress(self.params.quality)
