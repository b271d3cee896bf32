"""Image files as arrays, read with Pillow."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from robustkd.contracts import Arrays, DataError, DeferredArrays

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM")
"""Pillow's names of the formats that are read from folders and archives of images."""
_THREADS = min(8, os.cpu_count() or 1)

Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class ImageReader:
    """How an image file becomes an array.

    Attributes:
        channels: 3 for RGB, 1 for grey.
        resize: without ``crop``, this many pixels each way, or (H, W). With it the shorter side, the other one in proportion.
        crop: the square in the centre that is cut out, as (crop, crop). ``ImageReader(resize=256, crop=224)`` is usual for ImageNet,
            and gives the pixels of torchvision's ``Resize(256)`` and ``CenterCrop(224)`` of a PIL image.
        interpolation: of the resizing; both with antialiasing.
        white: the value that is white in pixels of more than 8 bits. None is 65,535 of integers, and 1 of floats that lie in [0, 1].
        upright: whether it is turned as the camera noted in its EXIF data; Hugging Face's data sets are, torchvision's are not.
        formats: Pillow's names of the formats to accept; no other decoder is tried, whatever the file says it is.
    """

    channels: int = 3
    resize: int | tuple[int, int] | None = None
    crop: int | None = None
    interpolation: Interpolation = "bilinear"
    white: float | None = None
    formats: tuple[str, ...] = FORMATS
    upright: bool = False

    def __call__(self, file: Path | bytes, name: object = None) -> np.ndarray:
        """One image as (channels, H, W) uint8.

        Args:
            file: a file, or the content of one.
            name: what an error calls it.

        Raises:
            DataError: the file is damaged, of another format, smaller than the crop, or so large that decoding it would exhaust the memory;
                or how it would look in 8 bits is not to be told: it has transparent pixels, or pixels of no certain range.
        """
        name = file if name is None else name
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=list(self.formats)) as opened:
                    upright = ImageOps.exif_transpose(opened) if self.upright else opened
                    image = in_eight_bits(upright, name, self.white).convert("RGB" if self.channels == 3 else "L")
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise DataError(
                f"{name} has more than the {Image.MAX_IMAGE_PIXELS:,} pixels that are decoded at most", fix="scale it down"
            ) from error
        except (OSError, ValueError, SyntaxError) as error:
            raise DataError(
                f"{name} cannot be read as {' or '.join(self.formats)}: {error}", fix="remove it or convert it"
            ) from error
        return _array(self._sized(image, name), self.channels)

    def _sized(self, image: Image.Image, name: object) -> Image.Image:
        size = self.resize
        if size is not None and self.crop is None:
            height, width = (size, size) if isinstance(size, int) else size
            return image.resize((width, height), _FILTERS[self.interpolation])
        if isinstance(size, int):
            short = min(image.size)
            width, height = (size if side == short else int(size * side / short) for side in image.size)
            image = image.resize((width, height), _FILTERS[self.interpolation])
        if self.crop is None:
            return image
        if min(image.size) < self.crop:
            raise DataError(
                f"{name} has {image.height} x {image.width} pixels, too few for a crop of {self.crop}",
                fix=f"set 'resize' to {self.crop} or more",
            )
        left, top = (round((side - self.crop) / 2.0) for side in image.size)
        return image.crop((left, top, left + self.crop, top + self.crop))


def in_eight_bits(image: Image.Image, name: object, white: float | None = None) -> Image.Image:
    """Opaque, with 8 bits a channel. Pillow's own conversion clips deeper pixels at 255, and drops transparency.

    Args:
        name: what an error calls it.
        white: see ``ImageReader``.

    Raises:
        DataError: it has transparent pixels, or pixels of no certain range.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _from_deeper(image, name, white)
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        raise DataError(
            f"{name} has transparent pixels, and what is behind them is not known",
            fix="save it without transparency, upon the background that is meant",
        )
    return image


def _from_deeper(image: Image.Image, name: object, white: float | None) -> Image.Image:
    pixels = np.asarray(image)
    low, high = float(pixels.min()), float(pixels.max())
    if "transparency" in image.info or not (low >= 0 and np.isfinite(high)):
        raise DataError(
            f"{name} has transparent pixels, or some below 0, which no grey is", fix="convert it to 8 or 16 bits, opaque"
        )
    if white is not None:
        if high > white:
            raise DataError(f"{name} has pixels up to {high:g}, above white: {white:g}", fix="raise 'white'")
        return Image.fromarray(np.rint(pixels.astype(np.float64) * (255 / white)).astype(np.uint8))
    if pixels.dtype.kind == "f" and high <= 1:
        return Image.fromarray(np.rint(pixels * 255).astype(np.uint8))
    if pixels.dtype.kind == "f" or high >= 1 << 16:
        what = "pixels that are floats, of no certain range" if pixels.dtype.kind == "f" else "pixels of more than 16 bits"
        raise DataError(
            f"{name} has {what}", fix="convert it to 8 or 16 bits, or, of files, set 'white' to the value that is white"
        )
    return Image.fromarray((pixels >> 8).astype(np.uint8))


_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def decoded(read: Callable[[int], np.ndarray], rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The images of some rows, several at once: Pillow decodes without holding the interpreter.

    Args:
        read: one image, (C, H, W) uint8, by its row. It raises what is wrong with it.
        shape: of each image.
    """
    images = np.empty((len(rows), *shape), np.uint8)

    def put(place: int) -> None:
        images[place] = read(int(rows[place]))

    if len(rows) < 2 * _THREADS:
        for place in range(len(rows)):
            put(place)
    else:
        with ThreadPoolExecutor(_THREADS) as pool:
            for _ in pool.map(put, range(len(rows))):
                pass
    return images


def resized(part: Arrays, side: int | None, interpolation: Interpolation = "bilinear") -> Arrays:
    """The images brought to ``side`` pixels each way, where they are used; as they are where it is None.

    The interpolation is Pillow's, with antialiasing, of uint8 images in uint8 and of others in float32.
    """
    if side is None:
        return part
    if len(part.sample_shape) != 3:
        raise DataError(f"'resize' is for images, and the inputs have the shape {part.sample_shape}", fix="leave it out")

    def one(image: np.ndarray) -> np.ndarray:
        channels = [Image.fromarray(channel).resize((side, side), _FILTERS[interpolation]) for channel in image]
        return np.stack([np.asarray(channel) for channel in channels]).clip(0, 255 if image.dtype == np.uint8 else 1)

    def read(rows: np.ndarray) -> np.ndarray:
        return np.stack([one(image) for image in part.select(rows).images])

    return DeferredArrays(read, part.labels, (part.sample_shape[0], side, side))


def _array(image: Image.Image, channels: int) -> np.ndarray:
    return np.asarray(image).reshape(image.height, image.width, channels).transpose(2, 0, 1)
