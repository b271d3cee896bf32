"""CIFAR's files, loaded and written again by Python 3 with protocol 2: the arrays that they hold, and still no code."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from robustkd.contracts import DataError
from robustkd.data import load_splits

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 3072), dtype=np.uint8)


def written(root: Path, protocol: int) -> Path:
    (root / "cifar-10-batches-py").mkdir(parents=True)
    for name in (*(f"data_batch_{part}" for part in range(1, 6)), "test_batch"):
        content = {"data": PIXELS, "labels": [row % 10 for row in range(20)]}
        (root / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(content, protocol=protocol))
    return root


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_every_protocol_holds_the_same_images(tmp_path: Path, protocol: int) -> None:
    data = load_splits("cifar10", {"root": written(tmp_path, protocol)})
    assert np.array_equal(data.test.images, PIXELS.reshape(-1, 3, 32, 32)[data.test_index])


def test_no_other_codec_is_called(tmp_path: Path) -> None:
    folder = written(tmp_path, 2) / "cifar-10-batches-py"
    (folder / "test_batch").write_bytes(b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00hex\x86R.")
    with pytest.raises(DataError, match="hex"):
        load_splits("cifar10", {"root": tmp_path})
