"""Images are decoded where they are used: a campaign that only attacks does not decode the training images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robustkd.contracts import DataError
from robustkd.data import SplitParams, load_splits


def write_images(folder: Path, classes: str = "ab", count: int = 5) -> None:
    for level, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(np.full((4, 6, 3), (40 * level, number, 200), np.uint8)).save(folder / name / f"{number:02d}.png")


def test_a_damaged_training_image_is_met_where_it_is_used(tmp_path: Path) -> None:
    write_images(tmp_path / "train")
    write_images(tmp_path / "test")
    damaged = next((tmp_path / "train").glob("*/*"))
    damaged.write_bytes(b"no image")
    data = load_splits("image-folder", {"root": tmp_path}, SplitParams(validation=0))
    assert len(data.test.unit()) == len(data.test)
    with pytest.raises(DataError, match=f"{damaged.name} cannot be read"):
        data.train.unit()


def test_of_a_large_folder_only_the_samples_that_are_attacked_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "test", "abc", count=20)
    opened: list[Path] = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda file, *args, **kwargs: opened.append(file) or real(file, *args, **kwargs))
    data = load_splits("image-folder", {"root": tmp_path}, SplitParams(test=6))
    images = data.test.unit()
    assert len(images) == 6
    assert len(opened) <= 6 + 1  # and the first one, for the size

    everything = load_splits("image-folder", {"root": tmp_path}).test
    assert np.array_equal(images, everything.unit()[:6])


def test_training_and_validation_are_cut_from_the_same_images_as_when_all_are_decoded_at_once(tmp_path: Path) -> None:
    write_images(tmp_path / "train", "abc", count=20)
    write_images(tmp_path / "test")
    split = SplitParams(train=30, validation=10)
    data, again = (load_splits("image-folder", {"root": tmp_path}, split) for _ in range(2))
    assert again.validation is not None
    few = again.validation.select(np.arange(3)).unit()  # before the whole is decoded
    assert (len(data.train), len(data.validation)) == (20, 10)
    assert np.array_equal(data.validation.unit()[:3], few)
    both = np.concatenate([data.train.images, data.validation.images]).reshape(30, -1)
    assert len(np.unique(both, axis=0)) == 30
    assert data.digest == again.digest
