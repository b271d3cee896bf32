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
        DataError: the file is damaged, of another format, or so large that decoding it would exhaust the memory.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=list(formats)) as opened:
                image = opened.convert("RGB" if channels == 3 else "L")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{file} cannot be read as {' or '.join(formats)}: {error}", fix="remove it or convert it") from error
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(image.height, image.width, channels).transpose(2, 0, 1)
