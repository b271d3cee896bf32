"""Images in folders named after their classes."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from robustkd.contracts import Arrays, CampaignPath, DataError, Dataset, DeferredArrays, Params, RawData
from robustkd.data.images import read_image
from robustkd.data.order import stratified_order

_SUFFIXES = (".png", ".jpg", ".jpeg")
_TEST_NAMES = ("test", "val", "validation")


class ImageFolderParams(Params):
    """Parameters of ``image-folder``."""

    root: CampaignPath = Field(
        description="folder of train/<class>/ and test/<class>/, or of <class>/ alone", examples=["my-images"]
    )
    resize: int | None = Field(None, ge=1, description="bring every image to this many pixels, square")
    channels: Literal[1, 3] = Field(3, description="3 for colour, 1 for grey")
    test_fraction: float = Field(0.2, gt=0, le=1, description="test part of a folder without train/ and test/")


class ImageFolder(Dataset):
    """PNG and JPEG files, as ``<root>/<train or test>/<class>/<file>`` or ``<root>/<class>/<file>``.

    The test folder may also be called ``val`` or ``validation``. Without such folders a fixed part of every class is
    the test part. Classes are the folder names in alphabetical order, files are taken in alphabetical order.
    """

    Params: ClassVar[type[Params]] = ImageFolderParams

    def load(self) -> RawData:
        """uint8 images (N, channels, H, W).

        Raises:
            DataError: there is no such folder or no image in it, an image cannot be read, or the sizes differ.
        """
        root = self.params.root
        if not root.is_dir():
            raise DataError(f"data 'image-folder': there is no folder {root}", fix="set 'root' to the folder of the images")
        train, test = root / "train", next((root / name for name in _TEST_NAMES if (root / name).is_dir()), None)
        if test is None and train.is_dir():
            raise DataError(f"data 'image-folder': {root} has train/ but no test/", fix="add test/, or point 'root' at train/")
        if test is not None:
            parts = [folder for folder in (train, test) if folder.is_dir()]
            classes = sorted({name for folder in parts for name in _folders(folder)})
            return RawData(self._read(train, classes) if train.is_dir() else None, self._read(test, classes), tuple(classes))
        classes = sorted(_folders(root))
        data = self._read(root, classes)
        order, cut = stratified_order(data.labels, 0), max(1, round(self.params.test_fraction * len(data)))
        held, rest = np.sort(order[:cut]), np.sort(order[cut:])
        return RawData(data.select(rest) if len(rest) else None, data.select(held), tuple(classes))

    def _read(self, folder: Path, classes: list[str]) -> Arrays:
        folders = _folders(folder)
        labelled_files = [
            (file, label)
            for label, name in enumerate(classes)
            for place in folders.get(name, ())
            for file in sorted(place.glob("*"))
            if file.suffix.lower() in _SUFFIXES
        ]
        if not labelled_files:
            raise DataError(
                f"data 'image-folder': no PNG or JPEG file in {folder}/<class>/", fix="put each class's images into its folder"
            )
        first = self._decoded(labelled_files[0][0])

        def read(rows: np.ndarray) -> np.ndarray:
            images = np.empty((len(rows), *first.shape), np.uint8)
            for place, row in enumerate(rows):
                file = labelled_files[row][0]
                image = self._decoded(file)
                if image.shape != first.shape:
                    raise DataError(
                        f"data 'image-folder': {file} has {image.shape[1]} x {image.shape[2]} pixels, "
                        f"{labelled_files[0][0]} has {first.shape[1]} x {first.shape[2]}",
                        fix="set 'resize' to bring all images to one size",
                    )
                images[place] = image
            return images

        return DeferredArrays(read, np.array([label for _, label in labelled_files], np.int64), first.shape)

    def _decoded(self, file: Path) -> np.ndarray:
        return read_image(file, ["PNG", "JPEG"], self.params.channels, self.params.resize)


def _folders(root: Path) -> dict[str, list[Path]]:
    """The folders in ``root`` by name; names that differ in the Unicode normal form alone, as systems write them, are one."""
    found: dict[str, list[Path]] = {}
    for entry in sorted(root.iterdir()):
        if entry.is_dir() and not entry.name.startswith("."):
            found.setdefault(unicodedata.normalize("NFC", entry.name), []).append(entry)
    return found
