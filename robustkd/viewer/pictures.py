"""Pictures of a sample as PNG files: clean, the change, and adversarial; or what a model drew before and under attack."""

from __future__ import annotations

import io

import numpy as np

from robustkd.reporting.gallery import GalleryItem, pixels

LARGEST_SIDE = 512
SMALLEST_SIDE = 96
"""A smaller picture is enlarged, each pixel to a square, so that it can be saved as it is seen."""


def png(image: np.ndarray) -> bytes:
    """A (C, H, W) image in [0, 1] as a PNG."""
    from PIL import Image

    shrink = -(-max(image.shape[1:]) // LARGEST_SIDE)
    levels = np.ascontiguousarray(pixels(image)[::shrink, ::shrink])
    enlarge = max(1, SMALLEST_SIDE // max(levels.shape[:2]))
    levels = levels.repeat(enlarge, axis=0).repeat(enlarge, axis=1)
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "PNG")
    return buffer.getvalue()


def change_of(clean: np.ndarray, adversarial: np.ndarray) -> GalleryItem:
    """What draws the change from one image to another, and says how much it is amplified."""
    return GalleryItem("", "", 0, clean, adversarial, "", "", "", 0.0, "")
