"""CIFAR-10 and CIFAR-100, in the authors' binary files, in the files that torchvision downloads, or as mosaics."""

from __future__ import annotations

import functools
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field

from robustkd.contracts import Arrays, CampaignPath, DataError, Dataset, DeferredArrays, Params, RawData
from robustkd.data.arrays import as_arrays, as_labels
from robustkd.data.files import download, not_found, search_folders
from robustkd.data.images import ImageReader, resized
from robustkd.data.safe_pickle import read_pickle

_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE
_MOSAIC_SIDE = 100  # images along each side of a mosaic
_CIFAR100_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish forest
fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain
mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit
raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower
sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman
worm
"""


class CifarParams(Params):
    """Parameters of ``cifar10`` and ``cifar100``."""

    root: CampaignPath | None = Field(
        None, description="folder of the data, or the folder above it; the usual places by default"
    )
    download: bool = Field(False, description="fetch the binary version from the authors' page when nothing is found")
    resize: int | None = Field(None, ge=1, description="bring every image to this many pixels each way (bilinear)")


@dataclass(frozen=True)
class Batches:
    """The files of one version of the data set, and the folder they are unpacked into."""

    folder: str
    train: tuple[str, ...]
    test: str


MOSAICS = Batches("", tuple(f"train_{part}.webp" for part in range(5)), "test.webp")
"""100 x 100 images a file, row-major, beside ``train_labels.npy`` and ``test_labels.npy``; lossless."""


class CifarDataset(Dataset):
    """32x32x3 images, from the first version that is found; with a test file alone there is a test part only.

    Attributes:
        folder: the name below the usual places.
        url, md5: the archive of the binary version.
        binary: records of ``label_bytes`` label bytes (the last is the class) and 3,072 pixel bytes.
        pickled: dictionaries of pixels ("data") and labels (``label_key``); read without running anything.
        classes: the class names, by label.
    """

    Params: ClassVar[type[Params]] = CifarParams
    source: ClassVar[str] = "Krizhevsky, Learning multiple layers of features from tiny images, 2009"
    folder: ClassVar[str]
    url: ClassVar[str]
    md5: ClassVar[str]
    binary: ClassVar[Batches]
    label_bytes: ClassVar[int]
    pickled: ClassVar[Batches]
    label_key: ClassVar[str]
    classes: ClassVar[tuple[str, ...]]

    def load(self) -> RawData:
        """uint8 images (N, 3, 32, 32), or of the size that is asked for.

        Raises:
            DataError: the data are not there, or a file is damaged.
        """
        raw = self._found()
        if raw is None and self.params.download:
            self._download()
            raw = self._found()
        if raw is None:
            versions = f"{self.binary.folder}/ or {self.pickled.folder}/"
            raise not_found(self.folder, self.params.root, f"set 'download: true', or 'root' to the folder of {versions}")
        return raw

    def _found(self) -> RawData | None:
        versions = ((self.binary, self._binary), (self.pickled, self._pickled), (MOSAICS, _mosaic))
        for root in search_folders(self.folder, self.params.root):
            for batches, read in versions:
                for folder in (root / batches.folder, root):
                    if (folder / batches.test).is_file():
                        return self._read(folder, batches, read)
        return None

    def _read(self, folder: Path, batches: Batches, read: Callable[[Path], Arrays]) -> RawData:
        there = [name for name in batches.train if (folder / name).is_file()]
        if there and len(there) < len(batches.train):
            lacking = ", ".join(name for name in batches.train if name not in there)
            raise DataError(f"{folder} lacks {lacking}", fix="add what is missing; for a test part alone remove the others")
        train, test = _joined([read(folder / name) for name in there]), read(folder / batches.test)
        side = self.params.resize
        return RawData(resized(train, side) if train else None, resized(test, side), self.classes)

    def _binary(self, file: Path) -> Arrays:
        content, size = np.fromfile(file, np.uint8), self.label_bytes + _PIXELS
        if len(content) == 0 or len(content) % size:
            raise _damaged(file, f"its size is not a multiple of {size} bytes")
        records = content.reshape(-1, size)
        images = records[:, self.label_bytes :].reshape(-1, 3, _SIDE, _SIDE)
        return as_arrays(images, records[:, self.label_bytes - 1], self.folder)

    def _pickled(self, file: Path) -> Arrays:
        batch = read_pickle(file)
        if not isinstance(batch, dict) or not {"data", self.label_key} <= batch.keys():
            raise _damaged(file, f"it holds no 'data' and '{self.label_key}'")
        pixels = np.asarray(batch["data"])
        if pixels.ndim != 2 or pixels.shape[1] != _PIXELS:
            raise _damaged(file, f"its pixels have shape {pixels.shape}, expected (N, {_PIXELS})")
        return as_arrays(pixels.reshape(-1, 3, _SIDE, _SIDE), np.asarray(batch[self.label_key]), self.folder)

    def _download(self) -> None:
        root = search_folders(self.folder, self.params.root)[0]
        archive, target = root / self.url.rpartition("/")[2], root / self.binary.folder
        download(self.url, archive, self.md5)
        wanted = {f"{self.binary.folder}/{name}": name for name in (*self.binary.train, self.binary.test)}
        try:
            # Only the expected files, by name, so that no path of the archive is followed; and the folder appears whole.
            with tempfile.TemporaryDirectory(dir=root) as scratch, tarfile.open(archive) as tar:
                whole = Path(scratch, "whole")
                whole.mkdir()
                for member in tar:
                    content = tar.extractfile(member) if member.name in wanted else None
                    if content is not None:
                        (whole / wanted[member.name]).write_bytes(content.read())
                whole.rename(target)
        except (OSError, EOFError, tarfile.TarError) as error:
            raise DataError(f"{archive} cannot be unpacked to {target}: {error}", fix=f"unpack it into {root}") from error
        archive.unlink()


class CIFAR10(CifarDataset):
    """50,000 training and 10,000 test photographs, ten classes."""

    folder = "cifar10"
    url = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    md5 = "c32a1d4ab5d03f1284b67883e8d87530"
    binary = Batches("cifar-10-batches-bin", tuple(f"data_batch_{part}.bin" for part in range(1, 6)), "test_batch.bin")
    label_bytes = 1
    pickled = Batches("cifar-10-batches-py", tuple(f"data_batch_{part}" for part in range(1, 6)), "test_batch")
    label_key = "labels"
    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class CIFAR100(CifarDataset):
    """50,000 training and 10,000 test photographs, the hundred fine classes."""

    folder = "cifar100"
    url = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"
    md5 = "03b5dce01913d631647c71ecec9e9cb8"
    binary = Batches("cifar-100-binary", ("train.bin",), "test.bin")
    label_bytes = 2
    pickled = Batches("cifar-100-python", ("train",), "test")
    label_key = "fine_labels"
    classes = tuple(_CIFAR100_CLASSES.split())


def _joined(parts: Sequence[Arrays]) -> Arrays | None:
    """Files as one part, still to be decoded; None without any."""
    if not parts:
        return None
    ends = np.cumsum([len(part) for part in parts])

    def read(rows: np.ndarray) -> np.ndarray:
        images = np.empty((len(rows), 3, _SIDE, _SIDE), np.uint8)
        for part, end in zip(parts, ends, strict=True):
            here = (rows >= end - len(part)) & (rows < end)
            if here.any():
                images[here] = part.select(rows[here] - (end - len(part))).images
        return images

    return DeferredArrays(read, np.concatenate([part.labels for part in parts]), (3, _SIDE, _SIDE))


def _mosaic(file: Path) -> Arrays:
    kind, _, part = file.stem.partition("_")
    labels_file, start = file.with_name(f"{kind}_labels.npy"), int(part or 0) * _MOSAIC_SIDE**2
    try:
        labels = np.load(labels_file, allow_pickle=False)[start : start + _MOSAIC_SIDE**2]
    except (OSError, ValueError) as error:
        raise _damaged(labels_file, str(error)) from error
    if len(labels) != _MOSAIC_SIDE**2:
        raise _damaged(labels_file, f"it has {len(labels)} labels for the {_MOSAIC_SIDE**2} images of {file.name}")

    @functools.cache  # every selection of its images needs the whole
    def mosaic() -> np.ndarray:
        found = ImageReader(formats=("WEBP",))(file)
        if found.shape != (3, _MOSAIC_SIDE * _SIDE, _MOSAIC_SIDE * _SIDE):
            raise _damaged(file, f"it is not a mosaic of {_MOSAIC_SIDE} x {_MOSAIC_SIDE} images")
        return found.reshape(3, _MOSAIC_SIDE, _SIDE, _MOSAIC_SIDE, _SIDE)

    def read(rows: np.ndarray) -> np.ndarray:
        images: np.ndarray = mosaic()[:, rows // _MOSAIC_SIDE, :, rows % _MOSAIC_SIDE]
        return images

    return DeferredArrays(read, as_labels(labels, file.name), (3, _SIDE, _SIDE))


def _damaged(file: Path, reason: str) -> DataError:
    return DataError(f"{file} is missing or damaged: {reason}", fix="get it again")
