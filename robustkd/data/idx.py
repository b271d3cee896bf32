"""MNIST and Fashion-MNIST, in the idx files that their authors publish."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field

from robustkd.contracts import Arrays, CampaignPath, DataError, Dataset, Params, RawData
from robustkd.data.arrays import as_arrays
from robustkd.data.files import download, not_found, search_folders
from robustkd.data.images import resized

_UNSIGNED_BYTE = 8  # the element type of both datasets' files; the format has others


class IdxParams(Params):
    """Parameters of ``mnist`` and ``fashion-mnist``."""

    root: CampaignPath | None = Field(None, description="folder of the idx files, plain or .gz; the usual places by default")
    download: bool = Field(False, description="fetch what is missing from the usual mirror")
    resize: int | None = Field(None, ge=1, description="bring every image to this many pixels each way (bilinear)")


class IdxDataset(Dataset):
    """Four idx files in a folder; with the two t10k files alone there is a test part only.

    Attributes:
        folder: the name below the usual places.
        torchvision: the folder that torchvision makes below its root.
        mirror: where ``<file>.gz`` is downloaded from.
        checksums: the MD5 of each ``<file>.gz``.
        classes: the class names, by label.
        hint: how else to get the files.
    """

    Params: ClassVar[type[Params]] = IdxParams
    folder: ClassVar[str]
    torchvision: ClassVar[str]
    mirror: ClassVar[str]
    checksums: ClassVar[dict[str, str]]
    classes: ClassVar[tuple[str, ...]]
    hint: ClassVar[str] = ""

    def load(self) -> RawData:
        """uint8 images (N, 1, H, W).

        Raises:
            DataError: the test files are not there, or a file is damaged.
        """
        folder = self._found()
        if self.params.download:
            folder = folder or search_folders(self.folder, self.params.root)[0]
            for name, md5 in self.checksums.items():
                if _file(folder, name) is None:
                    download(f"{self.mirror}{name}.gz", folder / f"{name}.gz", md5)
        if folder is None:
            fix = f"{self.hint}set 'download: true', or 'root' to a folder with t10k-images-idx3-ubyte.gz and the like"
            raise not_found(self.folder, self.params.root, fix)
        train = self._part(folder, "train") if _file(folder, "train-images-idx3-ubyte") else None
        return RawData(train, self._part(folder, "t10k"), self.classes)

    def _found(self) -> Path | None:
        for root in search_folders(self.folder, self.params.root):
            for folder in (root, root / self.torchvision / "raw"):
                if _file(folder, "t10k-images-idx3-ubyte"):
                    return folder
        return None

    def _part(self, folder: Path, prefix: str) -> Arrays:
        images, labels = _read(folder, f"{prefix}-images-idx3-ubyte", 3), _read(folder, f"{prefix}-labels-idx1-ubyte", 1)
        return resized(as_arrays(images[:, None], labels, self.folder), self.params.resize)


class MNIST(IdxDataset):
    """60,000 training and 10,000 test images of handwritten digits, 28x28x1."""

    source: ClassVar[str] = "LeCun et al., Gradient-based learning applied to document recognition, 1998"
    folder = "mnist"
    torchvision = "MNIST"
    mirror = "https://ossci-datasets.s3.amazonaws.com/mnist/"
    checksums: ClassVar[dict[str, str]] = {
        "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
    }
    classes = tuple(str(digit) for digit in range(10))


class FashionMNIST(IdxDataset):
    """60,000 training and 10,000 test images of clothes, 28x28x1."""

    source: ClassVar[str] = "Xiao et al., Fashion-MNIST: a novel image dataset for benchmarking, 2017, arXiv:1708.07747"
    folder = "fashion-mnist"
    torchvision = "FashionMNIST"
    mirror = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
    checksums: ClassVar[dict[str, str]] = {
        "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
    }
    classes = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )
    hint = "on Debian or Ubuntu run `apt-get install dataset-fashion-mnist`; elsewhere "


def _file(folder: Path, name: str) -> Path | None:
    return next((file for file in (folder / name, folder / f"{name}.gz") if file.is_file()), None)


def _read(folder: Path, name: str, ndim: int) -> np.ndarray:
    file = _file(folder, name)
    if file is None:
        raise DataError(f"{folder} has no {name}, plain or .gz", fix="copy it there too, or set 'download: true'")
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file} is damaged: {error}", fix="delete it and get it again") from error
    # Two zero bytes, the element type, the number of dimensions, then their sizes in big-endian 32 bits.
    start = 4 + 4 * ndim
    shape = np.frombuffer(content[4:start], ">u4").tolist()
    if content[:4] != bytes((0, 0, _UNSIGNED_BYTE, ndim)) or len(content) != start + math.prod(shape):
        raise DataError(f"{file} is not an idx file of {ndim} dimensions, or it is cut off", fix="delete it and get it again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
