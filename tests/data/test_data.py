from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from robustkd import plugins
from robustkd.contracts import DataError
from robustkd.data import SplitParams, Splits, load_splits
from robustkd.data.cifar import CIFAR10, CIFAR100, CifarDataset
from robustkd.data.idx import MNIST
from robustkd.data.order import stratified_order
from support.fashion_mnist import needs_fashion_mnist

ALL = SplitParams(validation=0)
ORDER = [11, 3, 1, 6, 2, 7, 4, 8, 0, 9, 10, 5]
DIGEST = "f693846f81c60325805dca3b152c444fc965a149acf642a9ae49cdfc70d8ab74"


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def contents(data: Splits) -> list[tuple[int, bytes]]:
    """Every sample of a data set, whatever its order."""
    parts = [part for part in (data.train, data.validation, data.test) if part is not None]
    return sorted((int(y), x.tobytes()) for part in parts for x, y in zip(part.images, part.labels, strict=True))


# Splitting ------------------------------------------------------------------------------------------------------------

SIZES = {"train": (200, 90, 40, 7, 3), "test": (60, 60, 25, 5, 1)}


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An unbalanced data set whose images are their own positions."""
    file = tmp_path_factory.mktemp("numbered") / "data.npz"
    arrays: dict[str, Any] = {}
    for part, sizes in SIZES.items():
        labels = generator().permutation(np.repeat(np.arange(len(sizes)), sizes))
        images = np.zeros((len(labels), 1, 2, 2), np.uint8)
        images[:, 0, 0, 0], images[:, 0, 0, 1] = np.arange(len(labels)) % 256, np.arange(len(labels)) // 256
        arrays |= {f"x_{part}": images, f"y_{part}": labels}
    np.savez(file, **arrays)
    return {"file": file}


def positions(images: np.ndarray) -> list[int]:
    return [int(row[0, 0, 0]) + 256 * int(row[0, 0, 1]) for row in images]


def assert_stratified(labels: np.ndarray, sizes: tuple[int, ...]) -> None:
    share = np.array(sizes) / sum(sizes)
    excess = np.bincount(labels, minlength=len(sizes)) - len(labels) * share
    # One for the class itself, and its share of the other classes' roundings.
    assert (np.abs(excess) <= 1 + share * len(sizes)).all()


@settings(deadline=None, max_examples=60)
@given(
    train=st.none() | st.integers(2, 340),
    test=st.none() | st.integers(1, 151),
    validation=st.integers(0, 100) | st.floats(0, 0.9),
    seed=st.integers(0, 2**32),
)
def test_splits_are_disjoint_stratified_and_of_the_sizes_asked_for(
    numbered: dict[str, Any], train: int | None, test: int | None, validation: int | float, seed: int
) -> None:
    total = train or 340
    held = validation if isinstance(validation, int) else max(round(validation * total), int(validation > 0))
    split = SplitParams(train=train, test=test, validation=validation, seed=seed)
    if held >= total:
        with pytest.raises(DataError, match="leaves none to train on"):
            load_splits("npz", numbered, split)
        return
    data = load_splits("npz", numbered, split)
    assert data.train is not None
    assert (len(data.train), len(data.test)) == (total - held, test or 151)
    assert (data.validation is None) if held == 0 else (data.validation is not None and len(data.validation) == held)
    fitted, selected = positions(data.train.images), positions(data.validation.images) if data.validation else []
    assert len({*fitted, *selected}) == total
    assert positions(data.test.images) == data.test_index.tolist()
    assert len(set(data.test_index.tolist())) == len(data.test)
    assert_stratified(data.test.labels, SIZES["test"])
    assert_stratified(data.test.labels[: len(data.test) // 2], SIZES["test"])
    both = [data.train.labels] if data.validation is None else [data.train.labels, data.validation.labels]
    assert_stratified(np.concatenate(both), SIZES["train"])
    if data.validation is not None:
        assert_stratified(data.validation.labels, SIZES["train"])


def test_the_test_samples_depend_on_the_seed_alone(numbered: dict[str, Any]) -> None:
    def index(**split: Any) -> list[int]:
        return list(load_splits("npz", numbered, SplitParams(**split)).test_index)

    assert index(test=50) == index(test=50, train=20) == index(test=50, validation=7) == index(test=80)[:50] == index()[:50]
    assert index(test=50) != index(test=50, seed=1)
    assert index() != sorted(index())


def test_more_training_samples_contain_the_fewer(numbered: dict[str, Any]) -> None:
    few, many = (load_splits("npz", numbered, SplitParams(train=train, validation=10)) for train in (50, 100))
    assert few.train is not None
    assert many.train is not None
    assert few.validation is not None
    assert many.validation is not None
    assert few.validation.digest() == many.validation.digest()
    assert positions(many.train.images)[:40] == positions(few.train.images)


def test_equal_classes_stay_equal_in_every_prefix() -> None:
    labels = np.arange(1000) % 10
    counts = np.cumsum(np.eye(10, dtype=int)[labels[stratified_order(labels, 3)]], axis=0)
    assert (counts.max(1) - counts.min(1)).max() <= 1


def test_the_order_is_the_same_on_every_machine() -> None:
    # A changed order changes every campaign's samples and so the identity of every stored cell.
    assert stratified_order(np.arange(12) % 3, 0, 0).tolist() == ORDER
    assert load_splits("digits", {}, SplitParams(train=100, test=50)).digest == DIGEST


def test_the_digest_covers_contents_order_and_names(numbered: dict[str, Any]) -> None:
    def digest(seed: int = 0, **params: Any) -> str:
        return load_splits("npz", numbered | params, SplitParams(seed=seed)).digest

    assert digest() == digest()
    assert len({digest(), digest(seed=1), digest(classes=("a", "b", "c", "d", "e"))}) == 3


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ({"train": 341}, "341 training samples are asked for, there are 340"),
        ({"test": 152}, "152 test samples are asked for, there are 151"),
        ({"train": 10, "validation": 10}, "leaves none to train on"),
    ],
)
def test_more_than_there_is(numbered: dict[str, Any], split: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        load_splits("npz", numbered, SplitParams(**split))
    assert caught.value.fix


@pytest.mark.parametrize("split", [{"validation": 1.5}, {"validation": -1}, {"train": 0}, {"seed": -1}, {"trian": 5}])
def test_senseless_sizes_are_refused(split: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SplitParams(**split)


# scikit-learn's digits ------------------------------------------------------------------------------------------------


def test_digits() -> None:
    data = load_splits("digits", {}, ALL)
    assert data.train is not None
    assert (len(data.train), len(data.test)) == (1258, 539)
    assert (data.input_shape, data.num_classes, data.classes[3]) == ((1, 8, 8), 10, "3")
    assert data.test.images.dtype == np.float32
    assert (data.test.images.min(), data.test.images.max()) == (0, 1)
    assert np.bincount(data.test.labels).min() >= 50


def test_loading_needs_no_torch() -> None:
    code = "import sys; from robustkd.data import load_splits; load_splits('digits'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# idx ------------------------------------------------------------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(folder: Path, prefix: str, count: int, packed: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    images = generator(count).integers(0, 256, (count, 28, 28), np.uint8)
    labels = (np.arange(count) % 10).astype(np.uint8)
    for name, array in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (folder / name).write_bytes(idx(array))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("below", ["", "MNIST/raw"])
def test_idx(tmp_path: Path, packed: bool, below: str) -> None:
    write_idx(tmp_path / below, "train", 40, packed)
    write_idx(tmp_path / below, "t10k", 20, packed)
    data = load_splits("mnist", {"root": tmp_path}, ALL)
    assert data.train is not None
    assert (len(data.train), len(data.test), data.input_shape) == (40, 20, (1, 28, 28))
    expected = generator(20).integers(0, 256, (20, 28, 28), np.uint8)
    assert data.test.images.dtype == np.uint8
    assert (data.test.images[:, 0] == expected[data.test_index]).all()
    assert (data.test.labels == data.test_index % 10).all()


def test_idx_without_training_files_is_a_test_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx(tmp_path / "fashion-mnist", "t10k", 20)
    monkeypatch.setenv("ROBUSTKD_DATA", str(tmp_path))
    data = load_splits("fashion-mnist", {}, SplitParams(test=10))
    assert data.train is data.validation is None
    assert data.classes[9] == "Ankle boot"
    with pytest.raises(DataError, match="only a test part"):
        load_splits("fashion-mnist", {}, SplitParams(train=10))


def test_missing_idx_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="apt-get install dataset-fashion-mnist") as caught:
        load_splits("fashion-mnist", {"root": tmp_path})
    assert str(tmp_path) in caught.value.message


@pytest.mark.parametrize("harm", ["cut", "cut gz", "other type", "no labels"])
def test_damaged_idx(tmp_path: Path, harm: str) -> None:
    write_idx(tmp_path, "t10k", 20, packed=harm == "cut gz")
    if harm == "no labels":
        (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    else:
        file = next(tmp_path.glob("t10k-images*"))
        content = file.read_bytes()
        file.write_bytes(b"\0\0\x0d\3" + content[4:] if harm == "other type" else content[:-5])
    with pytest.raises(DataError) as caught:
        load_splits("mnist", {"root": tmp_path})
    assert caught.value.fix


def test_idx_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror, root = tmp_path / "mirror", tmp_path / "root"
    write_idx(mirror, "train", 40)
    write_idx(mirror, "t10k", 20)
    sums = {name: hashlib.md5((mirror / f"{name}.gz").read_bytes()).hexdigest() for name in MNIST.checksums}
    monkeypatch.setattr(MNIST, "mirror", mirror.as_uri() + "/")
    with pytest.raises(DataError, match="is not the expected file"):
        load_splits("mnist", {"root": root, "download": True})
    assert list(root.iterdir()) == []
    monkeypatch.setattr(MNIST, "checksums", sums)
    assert load_splits("mnist", {"root": root, "download": True}, ALL).train is not None
    monkeypatch.setattr(MNIST, "mirror", "file:///nowhere/")
    assert load_splits("mnist", {"root": root, "download": True}, ALL).train is not None  # nothing is missing any more
    with pytest.raises(DataError, match="cannot be downloaded") as caught:
        load_splits("mnist", {"root": tmp_path / "other", "download": True})
    assert "yourself" in str(caught.value.fix)


@needs_fashion_mnist
def test_fashion_mnist_of_debian() -> None:
    data = load_splits("fashion-mnist", {}, SplitParams(train=8000, test=500))
    assert data.train is not None
    assert data.validation is not None
    assert (len(data.train), len(data.validation)) == (7200, 800)
    assert np.bincount(data.test.labels).tolist() == [50] * 10


@pytest.mark.shared_data
def test_mnist_of_the_measuring_data(shared_data: Path) -> None:
    data = load_splits("mnist", {"root": shared_data / "mnist"})
    assert len(data.test) == 10_000
    assert np.bincount(data.test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


# CIFAR ----------------------------------------------------------------------------------------------------------------


def batch(part: int, count: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    return generator(part).integers(0, 256, (count, 3072), np.uint8), (np.arange(count) * 7 % classes).astype(np.uint8)


def write_binary(root: Path, kind: type[CifarDataset], count: int = 20) -> Path:
    folder = root / kind.binary.folder
    folder.mkdir(parents=True)
    for part, name in enumerate((kind.binary.test, *kind.binary.train)):
        pixels, labels = batch(part, count, len(kind.classes))
        coarse = [np.zeros_like(labels)] * (kind.label_bytes - 1)
        (folder / name).write_bytes(np.column_stack([*coarse, labels, pixels]).tobytes())
    return folder


def write_pickled(root: Path, kind: type[CifarDataset], count: int = 20) -> Path:
    folder = root / kind.pickled.folder
    folder.mkdir(parents=True)
    for part, name in enumerate((kind.pickled.test, *kind.pickled.train)):
        pixels, labels = batch(part, count, len(kind.classes))
        content = {"data": pixels, kind.label_key: labels.tolist(), "filenames": [f"{row}.png" for row in range(count)]}
        (folder / name).write_bytes(pickle.dumps(content, protocol=4) if part else python2_pickle(content))
    return folder


def python2_pickle(content: dict[str, Any]) -> bytes:
    """What Python 2's cPickle and its NumPy wrote (protocol 2): the form of the files that torchvision downloads."""

    def text(value: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(value)) + value

    def integer(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    def value(item: Any) -> bytes:
        if isinstance(item, np.ndarray):
            dtype = b"cnumpy\ndtype\n(" + text(b"u1") + integer(0) + integer(1) + b"tR"
            dtype += b"(" + integer(3) + text(b"|") + b"NNN" + integer(-1) + integer(-1) + integer(0) + b"tb"
            empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(" + integer(0) + b"t" + text(b"b") + b"tR"
            shape = b"(" + b"".join(integer(size) for size in item.shape) + b"t"
            return empty + b"(" + integer(1) + shape + dtype + b"\x89" + text(item.tobytes()) + b"tb"
        if isinstance(item, list):
            return b"](" + b"".join(value(element) for element in item) + b"e"
        return text(item.encode()) if isinstance(item, str) else integer(item)

    return b"\x80\x02}(" + b"".join(text(key.encode()) + value(item) for key, item in content.items()) + b"u."


@pytest.mark.parametrize(("name", "kind"), [("cifar10", CIFAR10), ("cifar100", CIFAR100)])
def test_both_versions_of_cifar_are_the_same_data(tmp_path: Path, name: str, kind: type[CifarDataset]) -> None:
    binary, pickled = write_binary(tmp_path / "binary", kind), write_pickled(tmp_path / "pickled", kind)
    folders = (binary.parent, binary, pickled.parent, pickled)
    data = [load_splits(name, {"root": folder}) for folder in folders]
    assert len({each.digest for each in data}) == 1
    pixels, labels = batch(0, 20, len(kind.classes))
    assert (data[0].test.images == pixels.reshape(-1, 3, 32, 32)[data[0].test_index]).all()
    assert (data[0].test.labels == labels[data[0].test_index]).all()
    assert len(contents(data[0])) == 20 * (1 + len(kind.binary.train))


def test_cifar100_has_its_hundred_names() -> None:
    assert len(set(CIFAR100.classes)) == 100
    assert list(CIFAR100.classes) == sorted(CIFAR100.classes)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    folder = write_pickled(tmp_path, CIFAR10)
    (folder / "test_batch").write_bytes(pickle.dumps({"data": Hostile(), "labels": [0]}))
    with pytest.raises(DataError, match=r"it asks for .*mkdir"):
        load_splits("cifar10", {"root": tmp_path})
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("harm", ["cut", "no training file", "test part alone"])
def test_incomplete_cifar(tmp_path: Path, harm: str) -> None:
    folder = write_binary(tmp_path, CIFAR10)
    if harm == "cut":
        (folder / "test_batch.bin").write_bytes((folder / "test_batch.bin").read_bytes()[:-1])
    for part in {"cut": (), "no training file": (3,), "test part alone": range(1, 6)}[harm]:
        (folder / f"data_batch_{part}.bin").unlink()
    if harm == "test part alone":
        assert load_splits("cifar10", {"root": tmp_path}).train is None
        return
    with pytest.raises(DataError, match="multiple of 3073" if harm == "cut" else r"lacks data_batch_3\.bin"):
        load_splits("cifar10", {"root": tmp_path})


def test_cifar_download_takes_nothing_but_the_expected_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, root = write_binary(tmp_path / "mirror", CIFAR100), tmp_path / "root" / "cifar100"
    archive = tmp_path / "mirror" / "cifar-100-binary.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, CIFAR100.binary.folder)
        stray = tarfile.TarInfo("../../stray")
        tar.addfile(stray, io.BytesIO())
    monkeypatch.setattr(CIFAR100, "url", archive.as_uri())
    monkeypatch.setattr(CIFAR100, "md5", hashlib.md5(archive.read_bytes()).hexdigest())
    data = load_splits("cifar100", {"root": root, "download": True})
    assert data.digest == load_splits("cifar100", {"root": folder}).digest
    assert sorted(str(file.relative_to(root)) for file in root.rglob("*")) == [
        "cifar-100-binary",
        "cifar-100-binary/test.bin",
        "cifar-100-binary/train.bin",
    ]
    assert not list(tmp_path.rglob("stray"))


def test_mosaics(tmp_path: Path) -> None:
    images = generator().integers(0, 256, (10_000, 1, 1, 3), np.uint8) * np.ones((1, 32, 32, 1), np.uint8)
    mosaic = images.reshape(100, 100, 32, 32, 3).transpose(0, 2, 1, 3, 4).reshape(3200, 3200, 3)
    Image.fromarray(mosaic).save(tmp_path / "test.webp", lossless=True, method=0)
    np.save(tmp_path / "test_labels.npy", (np.arange(10_000) % 10).astype(np.uint8))
    data = load_splits("cifar10", {"root": tmp_path}, SplitParams(test=100))
    assert data.train is None
    assert (data.test.images == images.transpose(0, 3, 1, 2)[data.test_index]).all()
    assert (data.test.labels == data.test_index % 10).all()


@pytest.mark.shared_data
@pytest.mark.slow
def test_cifar_of_the_measuring_data(shared_data: Path) -> None:
    data = load_splits("cifar10", {"root": shared_data / "cifar10"}, ALL)
    assert data.train is not None
    assert np.bincount(data.train.labels).tolist() == [5000] * 10
    assert np.bincount(data.test.labels).tolist() == [1000] * 10
    # The channel means that everybody normalises CIFAR-10 with.
    assert data.train.images.mean(axis=(0, 2, 3)) / 255 == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-4)


def test_missing_cifar_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"download: true.*cifar-10-batches-bin"):
        load_splits("cifar10", {"root": tmp_path})


# Folders of images ----------------------------------------------------------------------------------------------------


def write_images(folder: Path, classes: str = "ab", count: int = 5, size: tuple[int, int] = (6, 4)) -> None:
    for level, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.full((size[1], size[0], 3), (40 * level, number, 200), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


def test_folders_of_images_with_parts(tmp_path: Path) -> None:
    write_images(tmp_path / "train")
    write_images(tmp_path / "val", count=2)
    data = load_splits("image-folder", {"root": tmp_path}, ALL)
    assert data.train is not None
    assert (len(data.train), len(data.test), data.input_shape, data.classes) == (10, 4, (3, 4, 6), ("a", "b"))
    assert data.test.images.dtype == np.uint8
    assert (data.test.images[:, 0] == 40 * data.test.labels[:, None, None]).all()
    assert (data.test.images[:, 2] == 200).all()


def test_folders_of_images_without_parts(tmp_path: Path) -> None:
    write_images(tmp_path, "abc", count=10)
    data, again = (load_splits("image-folder", {"root": tmp_path}, ALL) for _ in range(2))
    assert data.train is not None
    assert (len(data.train), len(data.test)) == (24, 6)
    assert np.bincount(data.test.labels).tolist() == [2, 2, 2]
    assert data.digest == again.digest
    assert len(set(contents(data))) == 30
    assert load_splits("image-folder", {"root": tmp_path, "test_fraction": 1}).train is None


def test_images_of_different_sizes_need_resize(tmp_path: Path) -> None:
    write_images(tmp_path / "test")
    Image.new("L", (9, 9)).save(tmp_path / "test" / "b" / "9.jpg")
    with pytest.raises(DataError, match="set 'resize'"):
        load_splits("image-folder", {"root": tmp_path}).test.digest()
    data = load_splits("image-folder", {"root": tmp_path, "resize": 8, "channels": 1})
    assert data.input_shape == (1, 8, 8)
    assert len(data.test) == 11


@pytest.mark.parametrize("harm", ["cut", "disguised", "empty", "missing", "no test"])
def test_images_that_cannot_be_read(tmp_path: Path, harm: str) -> None:
    write_images(tmp_path / ("train" if harm == "no test" else "test"), count=0 if harm == "empty" else 1)
    file = tmp_path / "test" / "a" / "0.png"
    if harm == "cut":
        file.write_bytes(file.read_bytes()[:40])
    if harm == "disguised":
        Image.new("RGB", (6, 4)).save(file, format="GIF")
    with pytest.raises(DataError) as caught:
        load_splits("image-folder", {"root": tmp_path / "nowhere" if harm == "missing" else tmp_path})
    assert caught.value.fix


# The user's own arrays ------------------------------------------------------------------------------------------------


def save(folder: Path, **arrays: Any) -> dict[str, Any]:
    np.savez(folder / "data.npz", **arrays)
    return {"file": folder / "data.npz"}


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((8, 3, 5, 6), (3, 5, 6)), ((8, 5, 6, 3), (3, 5, 6)), ((8, 5, 6), (1, 5, 6)), ((8, 5, 6, 1), (1, 5, 6))],
)
def test_npz_layouts(tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    params = save(tmp_path, images=generator().random(shape), labels=np.arange(8)[:, None] % 4)
    data = load_splits("npz", params)
    assert (data.input_shape, data.num_classes, data.train) == (expected, 4, None)
    assert data.test.images.dtype == np.float32
    assert data.test.labels.dtype == np.int64


def test_npz_moves_channels_rightly(tmp_path: Path) -> None:
    images = generator().integers(0, 256, (8, 5, 6, 3), np.uint8)
    data = load_splits("npz", save(tmp_path, images=images, labels=np.arange(8), classes=list("abcdefgh")))
    assert (data.test.images[:, 1] == images[data.test_index][..., 1]).all()
    assert data.classes == tuple("abcdefgh")


LABELS = np.arange(8)


@pytest.mark.parametrize(
    ("arrays", "params", "said"),
    [
        ({"images": np.full((8, 1, 4, 4), 1.5), "labels": LABELS}, {}, "outside \\[0, 1\\]"),
        ({"images": np.full((8, 1, 4, 4), np.nan), "labels": LABELS}, {}, "outside \\[0, 1\\]"),
        ({"images": np.zeros((8, 1, 4, 4), np.int64), "labels": LABELS}, {}, "uint8"),
        ({"images": np.zeros((8, 1, 4, 4)), "labels": LABELS}, {"classes": ("a", "b")}, "labels 0\\.\\.1"),
        ({"images": np.zeros((8, 1, 4, 4)), "labels": LABELS - 1}, {}, "labels reach from -1"),
        ({"images": np.zeros((8, 1, 4, 4)), "labels": LABELS / 2}, {}, "integers"),
        ({"images": np.zeros((8, 1, 4, 4)), "labels": LABELS[1:]}, {}, "8 images but labels"),
        ({"images": np.zeros((8, 3, 4, 3)), "labels": LABELS}, {}, "set 'layout'"),
        ({"images": np.zeros((8, 5, 4, 5)), "labels": LABELS}, {}, "set 'layout'"),
        ({"images": np.zeros(8), "labels": LABELS}, {}, "shape"),
        ({"images": np.zeros((8, 1, 4, 4))}, {}, "no 'labels'"),
        ({"x_train": np.zeros((8, 1, 4, 4)), "y_train": LABELS}, {}, "no 'x_test'"),
        ({"images": np.array([None] * 8), "labels": LABELS}, {}, "numbers only"),
        (
            {"x_train": np.zeros((8, 1, 4, 4)), "y_train": LABELS, "x_test": np.zeros((8, 1, 5, 5)), "y_test": LABELS},
            {},
            "one size",
        ),
    ],
)
def test_npz_that_cannot_be_used(tmp_path: Path, arrays: dict[str, Any], params: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        load_splits("npz", save(tmp_path, **arrays) | params)
    assert caught.value.fix


def test_npz_that_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "data.npz").write_bytes(b"not an archive")
    for file in (tmp_path / "data.npz", tmp_path / "nowhere.npz"):
        with pytest.raises(DataError, match="cannot be used"):
            load_splits("npz", {"file": file})


@pytest.mark.parametrize("name", plugins.names("datasets"))
def test_no_parameter_of_a_dataset_is_taken_by_the_split(name):
    assert not set(plugins.load("datasets", name).Params.model_fields) & set(SplitParams.model_fields)
