"""Data sets as other tools store them: Parquet, Hugging Face's ``save_to_disk``, WebDataset's tar files, and torch's tensors."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from robustkd.contracts import Arrays, CampaignPath, DataError, Dataset, DeferredArrays, Params, RawData
from robustkd.contracts.json_value import JsonObject, JsonValue
from robustkd.data.image_folder import SUFFIXES, ImageParams
from robustkd.data.images import decoded, resized
from robustkd.data.label_column import labels_of
from robustkd.data.multi_label import numbered
from robustkd.data.samples import IMAGE_KEYS, LABEL_KEYS, arrays_of
from robustkd.lazy import torch

Part = tuple[Sequence[Any], Sequence[Any], tuple[str, ...]]
"""The encoded images, their labels, and the class names where the file says them."""


class StoredParams(ImageParams):
    file: CampaignPath = Field(
        description="test part: .parquet, .tar of WebDataset, .pt of tensors, or a folder of Hugging Face's save_to_disk",
        examples=["test.parquet"],
    )
    train_file: CampaignPath | None = Field(None, description="training part, in such a file too")


class Stored(Dataset):
    """Images with labels from a file that another tool wrote.

    Parquet and ``save_to_disk`` have a column image (bytes, as Hugging Face writes them) and a column label, or one of lists of the
    labels that hold together (names, numbers of a ``ClassLabel``, or 0 and 1 for each label); a tar file has pairs
    such as 0001.jpg and 0001.cls; a .pt file holds a pair of tensors, or a mapping of images and labels, and is read without
    running anything.
    """

    Params: ClassVar[type[Params]] = StoredParams

    def load(self) -> RawData:
        """Images (N, C, H, W), decoded where they are used.

        Raises:
            DataError: a file is missing, damaged, or has no images and labels.
        """
        test, names = self._part(self.params.file)
        numbers = names or numbered([test.labels])
        train = None if self.params.train_file is None else self._part(self.params.train_file, numbers)[0]
        names = names or numbered(part.labels for part in (test, train) if part is not None)
        return RawData(train, test, names, outputs_known=self.params.classes is not None)

    def _part(self, file: Path, of_texts: tuple[str, ...] = ()) -> tuple[Arrays, tuple[str, ...]]:
        try:
            if file.suffix in (".pt", ".pth"):
                return self._tensors(file)
            read = _READERS.get(file.suffix) if file.is_file() else _saved
            if read is None or not file.exists():
                raise ValueError(f"no such file, or of another kind than {', '.join(_READERS)}")
            images, labels, told = read(file)
            if not len(images):
                raise ValueError("no image with a label is in it")
            known, names = labels_of(labels, told, self.params.classes, of_texts)
        except DataError:
            raise
        except Exception as error:  # each library has errors of its own for a damaged file
            raise DataError(f"{file} cannot be read: {error}", fix="give a file with images and labels") from error
        # Hugging Face's data sets turn a picture as its camera was held, since version 2.19; a tar's readers do not.
        decode = replace(self.params.reading(), upright=file.suffix != ".tar")

        def one(row: int) -> np.ndarray:
            image = decode(_content(images[row]), f"image {row} of {file}")
            if image.shape != shape:
                raise DataError(f"image {row} of {file} is {image.shape}, the first one {shape}", fix=self.params.to_one_size)
            return image

        shape = decode(_content(images[0]), f"image 0 of {file}").shape
        return DeferredArrays(lambda rows: decoded(one, rows, shape), known, shape), names

    def _tensors(self, file: Path) -> tuple[Arrays, tuple[str, ...]]:
        arrays, classes = self._as_asked(_tensors(file), file), self.params.classes
        if classes is None or arrays.labels.ndim > 1:
            return arrays, ()
        labels, names = labels_of(arrays.labels.tolist(), (), classes)
        return Arrays(arrays.images, labels), names

    def _as_asked(self, arrays: Arrays, file: Path) -> Arrays:
        """The images brought to the size that is asked for. The rest of what files of images take is refused, not passed over.

        Raises:
            DataError: it is asked for, or other channels than there are.
        """
        asked, shape = self.params, arrays.sample_shape
        grey = len(shape) == 3 and shape[0] == 1
        others = {
            "crop": asked.crop is not None,
            "white": asked.white is not None,
            "channels": asked.channels == 1 and not grey,
        }
        if refused := [key for key, given in others.items() if given]:
            raise DataError(
                f"{file} holds tensors of the shape {shape}, which '{refused[0]}' is not for",
                fix=f"leave out '{refused[0]}', and store the tensors as the model takes them",
            )
        return resized(arrays, asked.resize, asked.interpolation)


def _content(image: Any) -> bytes:
    """The bytes of an image from a column's value, or from what reads it."""
    value = image() if callable(image) else image.as_py() if hasattr(image, "as_py") else image
    found = value["bytes"] if isinstance(value, dict) else value
    if not isinstance(found, bytes):
        raise DataError("the images are no encoded bytes", fix="store their content, not their paths")
    return found


def _tensors(file: Path) -> Arrays:
    content = torch.load(file, map_location="cpu", weights_only=True)
    if isinstance(content, dict):
        image, label = (next((key for key in keys if key in content), None) for keys in (IMAGE_KEYS, LABEL_KEYS))
        content = (content.get(image), content.get(label))
    if not isinstance(content, tuple | list) or len(content) != 2 or any(part is None for part in content):
        raise ValueError("it holds no pair of images and labels")
    return arrays_of(tuple(content), str(file))


def _parquet(file: Path) -> Part:
    import pyarrow.parquet as parquet

    table = parquet.read_table(file)
    features = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    return _columns(table, features)


def _saved(folder: Path) -> Part:
    import pyarrow as arrow

    info = _json(folder / "dataset_info.json")
    files = _data_files(folder, info.get("splits") or {})
    if not files:
        inner = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        raise ValueError(f"no .arrow file is in it; name one of its parts: {', '.join(inner) or 'there is none'}")
    tables = [arrow.ipc.open_stream(arrow.memory_map(str(file))).read_all() for file in files]
    return _columns(arrow.concat_tables(tables), info.get("features") or {})


def _data_files(folder: Path, splits: JsonObject) -> list[Path]:
    """The files of the data set, not those that ``map`` and ``filter`` left beside them.

    Args:
        splits: the parts that the data set has, of which this is one.
    """
    state = _json(folder / "state.json")
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise ValueError("it says which rows count beside its data, as older versions wrote it: save it again with a newer one")
    if "_data_files" in state:
        names = [str(file["filename"]) for file in state["_data_files"]]
        if missing := [name for name in names if Path(name).name != name or not (folder / name).is_file()]:
            raise ValueError(f"its state.json names {missing[0]}, which is no file in it")
        return [folder / name for name in names]
    files = [file for file in sorted(folder.glob("*.arrow")) if not file.name.startswith(("cache-", "tmp"))]
    whole = {re.sub(r"-\d+-of-\d+$", "", file.stem) for file in files}
    parts = sorted(part for part in splits if any(name == part or name.endswith(f"-{part}") for name in whole))
    if len(parts) > 1:
        raise ValueError(f"it holds the parts {', '.join(parts)} together, as a cache does: save each with save_to_disk")
    return files


def _json(file: Path) -> dict[str, Any]:
    found = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    if not isinstance(found, dict):
        raise ValueError(f"{file.name} is no JSON object")
    return found


def _columns(table: Any, features: JsonObject) -> Part:
    image, label = (next((key for key in keys if key in table.column_names), None) for keys in (IMAGE_KEYS, LABEL_KEYS))
    if image is None or label is None:
        raise ValueError(f"it has the columns {', '.join(table.column_names)}, and none 'image' and 'label'")
    return table.column(image), table.column(label).to_pylist(), _names(features.get(label, {}))


def _names(feature: JsonValue) -> tuple[str, ...]:
    """What Hugging Face's description of a column calls its classes, or those in its lists; () where it has none."""
    inner = feature[0] if isinstance(feature, list) else feature.get("feature", feature) if isinstance(feature, dict) else None
    names = inner.get("names") if isinstance(inner, dict) else None
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _tar(file: Path) -> Part:
    found: dict[str, dict[str, tarfile.TarInfo]] = {}
    with tarfile.open(file, "r:") as tar:
        for member in tar:
            if member.isfile():
                folder, _, name = member.name.rpartition("/")
                key, _, kind = name.partition(".")
                found.setdefault(f"{folder}/{key}", {})["." + kind.lower()] = member
    pairs = [(image, kinds[".cls"]) for kinds in found.values() if ".cls" in kinds for image in _images(kinds)]
    return [_reader(file, image) for image, _ in pairs], [int(_reader(file, label)()) for _, label in pairs], ()


def _images(kinds: dict[str, tarfile.TarInfo]) -> Iterator[tarfile.TarInfo]:
    yield from [member for kind, member in kinds.items() if kind in SUFFIXES][:1]


def _reader(file: Path, member: tarfile.TarInfo) -> Callable[[], bytes]:
    def read() -> bytes:
        with file.open("rb") as opened:
            opened.seek(member.offset_data)
            return opened.read(member.size)

    return read


_READERS: dict[str, Callable[[Path], Part]] = {".parquet": _parquet, ".tar": _tar}
