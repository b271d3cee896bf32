"""Image files as arrays, read with Pillow."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from robustkd.contracts import DataError


def read_image(file: Path, formats: Sequence[str], channels: int = 3, size: int | tuple[int, int] | None = None) -> np.ndarray:
    """One image as (channels, H, W) uint8.

    Args:
        formats: Pillow's names of the formats to accept; no other decoder is tried, whatever the file says it is.
        channels: 3 for RGB, 1 for grey.
        size: resize to so many pixels each way, or to (H, W) (bilinear, with antialiasing).

    Raises:
        DataError: the file is damaged, of another format, or so large that decoding it would exhaust the memory; or how it would look in 8
            bits is not to be told: it has transparent pixels, or pixels that are floats or 32-bit integers.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=list(formats)) as opened:
                image = _in_eight_bits(opened, file).convert("RGB" if channels == 3 else "L")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(
            f"{file} has more than the {Image.MAX_IMAGE_PIXELS:,} pixels that are decoded at most", fix="scale it down"
        ) from error
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{file} cannot be read as {' or '.join(formats)}: {error}", fix="remove it or convert it") from error
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(image.height, image.width, channels).transpose(2, 0, 1)


def _in_eight_bits(image: Image.Image, file: Path) -> Image.Image:
    """Opaque, with 8 bits a channel. Pillow's own conversion clips deeper pixels at 255, and drops transparency."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        pixels = np.asarray(image)
        if "transparency" not in image.info and pixels.min() >= 0 and pixels.max() < 1 << 16:
            return Image.fromarray((pixels >> 8).astype(np.uint8))
        raise DataError(
            f"{file} has pixels of more than 16 bits, or transparent ones", fix="convert it to 8 or 16 bits, opaque"
        )
    if image.mode == "F":
        raise DataError(f"{file} has pixels that are floats, of no certain range", fix="convert it to 8 or 16 bits")
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        raise DataError(
            f"{file} has transparent pixels, and what is behind them is not known",
            fix="save it without transparency, upon the background that is meant",
        )
    return image
