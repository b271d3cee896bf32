"""Pictures whose pixels are no 8-bit ones: their 8-bit value, or a refusal; never white."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from robustkd.contracts import DataError
from robustkd.data import SplitParams, load_splits
from robustkd.data.samples import arrays_of

LEVELS = (np.arange(64, dtype=np.uint16) * 1024 + 300).reshape(8, 8)


def loaded(folder: Path, image: Image.Image, channels: int = 1) -> np.ndarray:
    """What image-folder makes of one picture, (channels, H, W) uint8."""
    for place in ("train", "test"):
        (folder / place / "a").mkdir(parents=True)
        image.save(folder / place / "a" / "0.png")
    data = load_splits("image-folder", {"root": folder, "channels": channels}, SplitParams(validation=0))
    found: np.ndarray = data.test.images[0]
    return found


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grey_picture_of_16_bits_has_its_upper_8_bits(tmp_path: Path, channels: int) -> None:
    expected = np.repeat((LEVELS >> 8).astype(np.uint8)[None], channels, 0)
    assert np.array_equal(loaded(tmp_path, Image.fromarray(LEVELS), channels), expected)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_an_opaque_picture_of_8_bits_is_what_it_was(tmp_path: Path, mode: str) -> None:
    grey = Image.fromarray((LEVELS >> 8).astype(np.uint8))
    expected = np.asarray(grey.convert(mode).convert("L"))[None]
    assert np.array_equal(loaded(tmp_path, grey.convert(mode)), expected)


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
def test_a_transparent_picture_is_refused_by_name(tmp_path: Path, mode: str) -> None:
    image = Image.new(mode, (8, 8), {"LA": (200, 0), "RGBA": (200, 9, 9, 128), "P": 0}[mode])
    if mode == "P":
        image.info["transparency"] = 0
    with pytest.raises(DataError, match=r"0\.png has transparent pixels") as caught:
        loaded(tmp_path, image)
    assert "background" in (caught.value.fix or "")


def test_a_picture_beyond_the_limit_of_the_reader_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(LEVELS)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match=r"0\.png has more than the 10 pixels"):
        loaded(tmp_path, image)


class Pictures:
    """A data set of PIL images, as torch's are."""

    def __init__(self, *images: Image.Image) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Image.Image, int]:
        return self.images[row], 0


WAYS: dict[str, Callable[[Image.Image], Any]] = {
    "data set": Pictures,
    "list": lambda image: ([image], [0]),
    "loader": lambda image: iter([(image, 0)]),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_same_pictures_from_python(way: str) -> None:
    eight = (LEVELS >> 8).astype(np.uint8)
    for image in (Image.fromarray(LEVELS), Image.fromarray(LEVELS.astype(np.int32))):
        assert np.array_equal(arrays_of(WAYS[way](image)).images, eight[None, None])
    floats = arrays_of(WAYS[way](Image.fromarray((LEVELS / 65535).astype(np.float32)))).images
    assert np.array_equal(floats[0, 0], np.rint((LEVELS / 65535).astype(np.float32) * 255))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_an_opaque_picture_of_8_bits_from_python_is_what_it_was(mode: str) -> None:
    image = Image.fromarray((LEVELS >> 8).astype(np.uint8)).convert(mode)
    expected = np.asarray(image)[None] if mode == "L" else np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(arrays_of(Pictures(image)).images[0], expected)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("image", "said"),
    [
        (Image.new("RGBA", (8, 8), (255, 0, 0, 0)), "transparent pixels"),
        (Image.new("F", (8, 8), 200.0), "no certain range"),
        (Image.new("I", (8, 8), 200), "of 8 or of 16 bits"),
    ],
)
def test_a_picture_from_python_that_cannot_be_told_is_refused(way: str, image: Image.Image, said: str) -> None:
    with pytest.raises(DataError, match=f"your data.*{said}"):
        assert arrays_of(WAYS[way](image)).images is None
