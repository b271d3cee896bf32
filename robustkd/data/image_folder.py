"""Images in folders named after their classes."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from robustkd.contracts import Arrays, CampaignPath, DataError, Dataset, DeferredArrays, Params, RawData
from robustkd.data.class_names import ClassNames
from robustkd.data.digests import remembered
from robustkd.data.images import ImageReader, Interpolation, decoded
from robustkd.data.label_column import labels_of
from robustkd.data.metadata import listed, metadata_of
from robustkd.data.multi_label import numbered
from robustkd.data.order import stratified_order

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
_TRAIN = ("train", "training")
_TEST = ("test", "testing")
_VALIDATION = ("val", "valid", "validation", "dev")


class ImageParams(Params):
    """Parameters that data sets of image files share."""

    resize: int | None = Field(
        None,
        ge=1,
        description="bring every image to this many pixels each way; with 'crop' its shorter side, the other in proportion",
    )
    crop: int | None = Field(
        None, ge=1, description="cut this many pixels each way out of the centre; ImageNet: resize 256, crop 224"
    )
    interpolation: Interpolation = Field("bilinear", description="of the resizing, with antialiasing")
    channels: Literal[1, 3] = Field(3, description="3 for colour, 1 for grey")
    white: float | None = Field(
        None, gt=0, description="value that is white in pixels of more than 8 bits, such as 4095; 65535 of integers by default"
    )
    classes: Literal["imagenet", "imagenet-1001", "numbers"] | CampaignPath | None = Field(
        None,
        description="which output of the model a class is: by the alphabet (default); imagenet, for folders called n01440764 or tench; "
        "imagenet-1001, for networks whose first output is the background; "
        "numbers, for folders called 0, 1, ..; or a file: a class a line, in the order of the outputs, or JSON",
    )

    def reading(self) -> ImageReader:
        """How a file becomes an array."""
        return ImageReader(self.channels, self.resize, self.crop, self.interpolation, self.white)

    @property
    def to_one_size(self) -> str:
        """What a user does about images of several sizes."""
        return "set 'resize' to bring all images to one size, or 'resize' and 'crop', such as 256 and 224"


class ImageFolderParams(ImageParams):
    root: CampaignPath = Field(
        description="folder of train/<class>/ and test/<class>/, or of <class>/ alone", examples=["my-images"]
    )
    test_fraction: float = Field(0.2, gt=0, le=1, description="test part of a folder without train/ and test/")


class ImageFolder(Dataset):
    """Image files, as ``<root>/<train or test>/<class>/<file>`` or ``<root>/<class>/<file>``, also in folders below ``<class>``.

    PNG, JPEG, WebP, BMP, TIFF and PPM are read, and what else there is is left out and counted. ``val`` is the validation part
    beside ``test``, and the test part where there is no ``test``. Without such folders a fixed part of every class is the test part.
    Classes are the folder names in alphabetical order, unless ``classes`` says otherwise; files are taken in alphabetical order.
    Where a part has a ``metadata.jsonl`` or ``metadata.csv`` with a column ``file_name``, as Hugging Face's image folders have, labels are
    those of its rows (see ``metadata.listed``), and several may hold together.
    """

    Params: ClassVar[type[Params]] = ImageFolderParams

    def load(self) -> RawData:
        """uint8 images (N, channels, H, W), decoded where they are used.

        Raises:
            DataError: there is no such folder or no image in it, an image cannot be read, or the sizes differ.
        """
        root = self.params.root
        if not root.is_dir():
            raise DataError(f"data 'image-folder': there is no folder {root}", fix="set 'root' to the folder of the images")
        train, test, validation = (_part(root, names) for names in (_TRAIN, _TEST, _VALIDATION))
        if test is None:
            test, validation = validation, None
        if test is None and train is not None:
            raise DataError(
                f"data 'image-folder': {root} has {train.name}/ but no test/",
                fix=f"add test/, or point 'root' at {train.name}/",
            )
        folders = (train, test, validation) if test is not None else (None, root, None)
        tables = [folder and metadata_of(folder) for folder in folders]
        left_out: Counter[str] = Counter()
        told: tuple[str, ...] = ()
        if any(tables):
            parts, names = self._listed(folders, tables)
        else:
            found = sorted({name for folder in folders if folder is not None for name in _folders(folder)})
            classes = ClassNames.of(self.params.classes, found)
            parts = [None if folder is None else self._arrays(*_by_class(folder, classes, left_out)) for folder in folders]
            names, told = classes.names, _order(found) if self.params.classes is None else ()
        whole, known = parts[1], self.params.classes is not None
        assert whole is not None
        notes = (*told, *_notes(left_out))
        if test is not None:
            return RawData(parts[0], whole, names, validation=parts[2], notes=notes, outputs_known=known)
        strata = np.unique(whole.labels, axis=0, return_inverse=True)[1].reshape(-1)
        order, cut = stratified_order(strata, 0), max(1, round(self.params.test_fraction * len(whole)))
        held, rest = np.sort(order[:cut]), np.sort(order[cut:])
        training = whole.select(rest) if len(rest) else None
        return RawData(training, whole.select(held), names, notes=notes, outputs_known=known)

    def _listed(
        self, folders: Sequence[Path | None], tables: Sequence[Path | None]
    ) -> tuple[list[Arrays | None], tuple[str, ...]]:
        """The parts whose labels stand in tables."""
        rows = [None if table is None else listed(table) for table in tables]
        if lacking := [folder for folder, table in zip(folders, tables, strict=True) if folder is not None and table is None]:
            raise DataError(
                f"data 'image-folder': {lacking[0]} has no metadata.jsonl or metadata.csv with a column 'file_name', as the others have",
                fix="add it, or remove that of the others",
            )
        known = [part for part in rows if part is not None]
        values, columns = [value for _, part, _ in known for value in part], known[0][2]
        if any(part[2] != columns for part in known):
            raise DataError("data 'image-folder': the tables of the parts have other columns", fix="give all the same labels")
        try:
            labels, names = labels_of(values, columns, self.params.classes)
        except ValueError as error:
            raise DataError(f"data 'image-folder': {next(filter(None, tables))}: {error}", fix="correct its labels") from error
        parts: list[Arrays | None] = []
        for part in rows:
            if part is None:
                parts.append(None)
            else:
                parts.append(self._arrays(part[0], labels[: len(part[0])]))
                labels = labels[len(part[0]) :]
        return parts, names or numbered(part.labels for part in parts if part is not None)

    def _arrays(self, files: Sequence[Path], labels: np.ndarray) -> Arrays:
        read, how = self.params.reading(), self.params
        first = read(files[0])

        def one(row: int) -> np.ndarray:
            image = read(files[row])
            if image.shape != first.shape:
                raise DataError(
                    f"data 'image-folder': {files[row]} has {image.shape[1]} x {image.shape[2]} pixels, "
                    f"{files[0]} has {first.shape[1]} x {first.shape[2]}",
                    fix=how.to_one_size,
                )
            return image

        return DeferredArrays(
            lambda rows: decoded(one, rows, first.shape), labels, first.shape, remember=remembered(files, labels, read)
        )


def _by_class(folder: Path, classes: ClassNames, left_out: Counter[str]) -> tuple[list[Path], np.ndarray]:
    """The files in the folders of the classes, and the classes."""
    folders = _folders(folder)
    files: list[Path] = []
    labels: list[int] = []
    left_out.update(_kind(file) for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    for name in sorted(folders, key=lambda name: (classes.index[name], name)):
        for place in folders[name]:
            for file in sorted(_files(place)):
                if file.suffix.lower() in SUFFIXES:
                    files.append(file)
                    labels.append(classes.index[name])
                else:
                    left_out[_kind(file)] += 1
    if not files:
        found = ", ".join(f"{count} {kind}" for kind, count in left_out.most_common(3))
        raise DataError(
            f"data 'image-folder': no image in {folder}/<class>/" + (f", but {found}" if found else ""),
            fix=f"put each class's images into its folder ({', '.join(SUFFIXES)})",
        )
    return files, np.array(labels, np.int64)


def _part(root: Path, names: tuple[str, ...]) -> Path | None:
    """The folder of a part, by the first of its names that is there."""
    there = {entry.name.casefold(): entry for entry in sorted(root.iterdir()) if entry.is_dir()}
    return next((there[name] for name in names if name in there), None)


def _folders(root: Path) -> dict[str, list[Path]]:
    """The folders in ``root`` by name; names that differ in the Unicode normal form alone, as systems write them, are one."""
    found: dict[str, list[Path]] = {}
    for entry in sorted(root.iterdir()):
        if entry.is_dir() and not entry.name.startswith("."):
            found.setdefault(unicodedata.normalize("NFC", entry.name), []).append(entry)
    return found


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder; hidden ones, which systems and editors leave, do not count."""
    for entry in folder.iterdir():
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _files(entry)
        else:
            yield entry


def _kind(file: Path) -> str:
    return file.suffix.lower() or "without a suffix"


def _order(found: Sequence[str]) -> tuple[str, ...]:
    """That folders which are called by numbers are other classes than these, where the alphabet has another order."""
    if not all(name.isdecimal() for name in found) or sorted(found) == sorted(found, key=int):
        return ()
    place, name = next((place, name) for place, name in enumerate(sorted(found)) if place != int(name))
    return (
        f"the folders are called by numbers and are classes in the order of the alphabet, so '{name}' is class {place}, as torchvision "
        "has it; where a folder's number is the model's output, 'classes: numbers' says so",
    )


def _notes(left_out: Counter[str]) -> tuple[str, ...]:
    if not left_out:
        return ()
    kinds = ", ".join(f"{count} {kind}" for kind, count in left_out.most_common(5))
    return (f"{left_out.total()} files of the folder are left out, which are no images of a class ({kinds})",)
