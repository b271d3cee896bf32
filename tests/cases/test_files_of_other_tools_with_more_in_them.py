"""What other tools store with more in it than images and labels: caches, turned cameras, and parameters that tensors do not take."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image

from robustkd.contracts import DataError
from robustkd.data import load_splits


def png(level: int, **options: Any) -> bytes:
    Image.fromarray(np.arange(level, level + 64, dtype=np.uint8).reshape(8, 8)).save(content := io.BytesIO(), "PNG", **options)
    return content.getvalue()


def table(*levels: int, **options: Any) -> arrow.Table:
    return arrow.table(
        {"image": [{"bytes": png(level, **options), "path": None} for level in levels], "label": [0] * len(levels)}
    )


def save(file: Path, content: arrow.Table) -> None:
    file.parent.mkdir(exist_ok=True)
    with arrow.OSFile(str(file), "wb") as sink, arrow.ipc.new_stream(sink, content.schema) as out:
        out.write_table(content)


def levels(file: Path) -> list[int]:
    """The first pixel of each image."""
    data = load_splits("stored", {"file": file, "channels": 1})
    found: list[int] = data.test.images[np.argsort(data.test_index), 0, 0, 0].tolist()
    return found


def saved(folder: Path, **state: Any) -> Path:
    """As ``save_to_disk`` writes it, in two files, and then somebody called ``map``."""
    for number in range(2):
        save(folder / f"data-0000{number}-of-00002.arrow", table(number))
    files = [{"filename": f"data-0000{number}-of-00002.arrow"} for number in range(2)]
    (folder / "state.json").write_text(json.dumps({"_data_files": files, "_split": "test", **state}))
    save(folder / "cache-1a2b3c4d5e6f7a8b.arrow", table(100, 101))
    return folder


def test_only_the_files_that_a_saved_data_set_names_are_read(tmp_path: Path) -> None:
    folder = saved(tmp_path / "saved")
    assert levels(folder) == [0, 1]
    (folder / "state.json").unlink()
    assert levels(folder) == [0, 1]


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"_data_files": [{"filename": "gone.arrow"}]}, "gone.arrow"),
        ({"_data_files": [{"filename": "../other.arrow"}]}, "other.arrow"),
        ({"_indices_data_files": [{"filename": "indices.arrow"}]}, "rows"),
    ],
)
def test_a_saved_data_set_that_is_not_whole(tmp_path: Path, state: dict[str, Any], said: str) -> None:
    save(tmp_path / "other.arrow", table(9))
    with pytest.raises(DataError, match=said):
        levels(saved(tmp_path / "saved", **state))


def test_a_cache_of_all_parts_is_no_test_part(tmp_path: Path) -> None:
    """As ``load_dataset`` leaves it."""
    for part in ("train", "test"):
        save(tmp_path / "cache" / f"birds-{part}.arrow", table(3))
    (tmp_path / "cache" / "dataset_info.json").write_text(json.dumps({"splits": {"train": {}, "test": {}}}))
    with pytest.raises(DataError, match="test, train"):
        levels(tmp_path / "cache")


def test_a_camera_that_was_turned(tmp_path: Path) -> None:
    """Hugging Face's data sets turn the picture."""
    turned = Image.Exif()
    turned[0x0112] = 3
    parquet.write_table(table(5, exif=turned), tmp_path / "t.parquet")
    save(tmp_path / "saved" / "data.arrow", table(5, exif=turned))
    assert levels(tmp_path / "t.parquet") == levels(tmp_path / "saved") == [5 + 63]


@pytest.mark.parametrize("given", [{"resize": 10, "crop": 8}, {"channels": 1}, {"white": 4095.0}])
def test_what_tensors_cannot_be_given_is_refused(tmp_path: Path, given: dict[str, Any]) -> None:
    torch.save((torch.zeros(4, 3, 12, 16, dtype=torch.uint8), torch.arange(4)), tmp_path / "d.pt")
    with pytest.raises(DataError, match=f"'{list(given)[-1]}'"):
        load_splits("stored", {"file": tmp_path / "d.pt", **given})


def test_tensors_are_resized_as_asked(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (4, 1, 12, 16), dtype=torch.uint8)
    torch.save((images, torch.arange(4)), tmp_path / "d.pt")
    given = {"file": tmp_path / "d.pt", "resize": 30, "channels": 1, "interpolation": "bicubic"}  # grey they are
    data = load_splits("stored", given)
    expected = [np.asarray(Image.fromarray(image[0].numpy()).resize((30, 30), Image.Resampling.BICUBIC)) for image in images]
    assert np.array_equal(data.test.images[np.argsort(data.test_index), 0], expected)
