"""Labelled images out of what people have them in: arrays, tensors, lists, torch's data sets and loaders, rows of Hugging Face's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from robustkd.contracts import Arrays, DataError, DeferredArrays
from robustkd.contracts.errors import raised_by
from robustkd.data.arrays import as_arrays, as_labels
from robustkd.data.images import in_eight_bits

IMAGE_KEYS = ("image", "img", "images", "pixel_values", "x", "pixels")
LABEL_KEYS = ("label", "labels", "fine_label", "y", "target", "targets", "class")
_CHANNELS = (1, 3)


def arrays_of(data: Any, name: str = "your data") -> Arrays:
    """Images (N, C, H, W), uint8 or float32 in [0, 1], with their labels.

    Args:
        data: a pair of images and labels; a data set with a length, whose samples are decoded where they are used; or anything that
            gives samples or minibatches one after the other, such as a loader. A sample is a pair, or a mapping with an image and a
            label. An image is a PIL image, a tensor or an array, with the channels first or last.
        name: what an error calls it.

    Raises:
        DataError: it is none of these, is empty, its images are of several sizes, or one is transparent or of no certain range.
    """
    if isinstance(data, Arrays):
        return data
    if isinstance(data, tuple | list) and len(data) == 2 and _length(data[0]) == _length(data[1]) is not None:
        return as_arrays(channels_first(array_of(data[0], f"an image of {name}")), array_of(data[1]), name)
    if is_data_set(data):
        return _deferred(data, name)
    if not isinstance(data, Iterable):
        raise DataError(
            f"{name} is a {type(data).__name__}", fix="give images and labels, a data set, or a loader that gives such pairs"
        )
    return collected(data, name)


def class_names(data: Any) -> tuple[str, ...]:
    """What a data set of torch or Hugging Face, or that of a loader, calls its classes; () where it does not say."""
    while (inner := getattr(data, "dataset", None)) is not None:  # of a loader, or of a subset
        data = inner
    features = getattr(data, "features", None)
    columns = features if isinstance(features, Mapping) else {}
    named = getattr(columns.get(next((key for key in LABEL_KEYS if key in columns), "")), "names", None)
    listed = named or getattr(data, "classes", None)
    return tuple(map(str, listed)) if isinstance(listed, list | tuple) else ()


def is_data_set(data: Any) -> bool:
    """Whether it gives single samples by their number, as torch's map-style data sets and Hugging Face's do."""
    by_number = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    return by_number and not isinstance(data, Sequence | Mapping | np.ndarray) and not hasattr(data, "ndim")


def collected(data: Iterable[Any], name: str) -> Arrays:
    """The samples or minibatches of an iterable, all in memory.

    Raises:
        DataError: see ``arrays_of``.
    """
    images, labels = [], []
    for item in _items(data, name):
        image, label = _parts(item, name)
        image, label = array_of(image, f"an image of {name}"), array_of(label)
        images.append(channels_first(image if image.ndim == 4 else image[None]))
        labels.append(_rows(label, len(images[-1])))
    if not images:
        raise DataError(f"{name} is empty")
    if len(shapes := {part.shape[1:] for part in images}) > 1:
        raise DataError(f"{name} has images of the shapes {sorted(shapes)[:3]}", fix="bring all of them to one size")
    return as_arrays(np.concatenate(images), np.concatenate(labels), name)


def _items(data: Iterable[Any], name: str) -> Iterator[Any]:
    """One after the other; the code of a loader or a generator is the user's."""
    with raised_by(name, DataError):
        iterator = iter(data)
    while True:
        with raised_by(name, DataError):
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item


def _sample(data: Any, row: int, name: str) -> tuple[Any, Any]:
    """The image and the label of a row; the code of a data set is the user's."""
    with raised_by(f"sample {row} of {name}", DataError):
        item = data[row]
    return _parts(item, name)


def _rows(labels: np.ndarray, count: int) -> np.ndarray:
    """(count,) labels, or (count, L) of labels that may hold together."""
    return labels.reshape(-1) if labels.size == count else labels.reshape(count, -1)


def _deferred(data: Any, name: str) -> Arrays:
    if not len(data):
        raise DataError(f"{name} is empty")
    image, label = _sample(data, 0, name)
    first = image_of(image, f"sample 0 of {name}")
    known = _labels_beside(data)
    if known is None or not np.array_equal(array_of(known[0]), array_of(label)):
        known = [_sample(data, row, name)[1] for row in range(len(data))]
    labels = array_of(known)

    def read(rows: np.ndarray) -> np.ndarray:
        images = [image_of(_sample(data, int(row), name)[0], f"sample {row} of {name}") for row in rows]
        if strange := next((image for image in images if image.shape != first.shape), None):
            raise DataError(
                f"{name} has images of the shapes {first.shape} and {strange.shape}", fix="bring all of them to one size"
            )
        return as_arrays(np.stack(images), labels[rows], name).images

    return DeferredArrays(read, as_labels(labels, name), first.shape)


def _labels_beside(data: Any) -> Any:
    """The labels that a data set of torchvision keeps apart from its images, where its samples have the same; None where they may not.

    A data set of somebody else may call anything its targets, and give its samples other labels.
    """
    reads = getattr(type(data), "__getitem__", None)
    if str(getattr(reads, "__module__", "")).partition(".")[0] != "torchvision":
        return None
    both = getattr(data, "transforms", None)  # of torchvision's own class where there is a transform of the images alone
    if both is not None and type(both).__name__ != "StandardTransform":
        return None
    if any(getattr(each, "target_transform", None) is not None for each in (data, both)):
        return None
    listed: Any = getattr(data, "samples", None)
    if _length(listed) == len(data):  # of a folder, which reads its labels there
        return [label for _, label in listed]
    return next((found for key in ("targets", "labels") if _length(found := getattr(data, key, None)) == len(data)), None)


def _parts(item: Any, name: str) -> tuple[Any, Any]:
    """The image and the label of a sample or minibatch."""
    if isinstance(item, Mapping):
        found = [next((key for key in keys if key in item), None) for keys in (IMAGE_KEYS, LABEL_KEYS)]
        if found[0] is not None and found[1] is not None:
            return item[found[0]], item[found[1]]
        raise DataError(f"a sample of {name} has {', '.join(map(str, item))}", fix="call its parts 'image' and 'label'")
    if isinstance(item, tuple | list) and len(item) >= 2:
        return item[0], item[1]
    raise DataError(f"a sample of {name} is a {type(item).__name__}", fix="give pairs of image and label")


def image_of(image: Any, name: str = "an image") -> np.ndarray:
    """One image as (C, H, W)."""
    return channels_first(array_of(image, name)[None])[0]


def array_of(values: Any, name: str = "an image") -> np.ndarray:
    """Numbers or PIL images as an array.

    Args:
        name: what an error calls an image.

    Raises:
        DataError: a PIL image has transparent pixels, or pixels of no certain range.
    """
    if isinstance(values, Image.Image):
        return _pixels(values, name)
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        return np.asarray(values.float() if "bfloat16" in str(values.dtype) else values)
    if isinstance(values, list | tuple) and values and (isinstance(values[0], Image.Image) or hasattr(values[0], "detach")):
        return np.stack([array_of(value, name) for value in values])
    return np.asarray(values)


def _pixels(image: Image.Image, name: str) -> np.ndarray:
    """(H, W) of a grey image, also of a deeper one, else (H, W, 3)."""
    largest = int(np.asarray(image).max()) if image.mode == "I" else 0
    if 0 < largest < 256:
        # Pillow had 16-bit files in this mode, and NumPy's integers have it: nearly black, or as bright as it looks in 8 bits.
        raise DataError(
            f"{name} has pixels of 32 bits up to {largest}, and may be of 8 or of 16 bits",
            fix="convert it: image.convert('L') of 8 bits, image.convert('I;16') of 16",
        )
    image = in_eight_bits(image, name)
    return np.asarray(image if image.mode == "L" else image.convert("RGB"))


def channels_first(images: np.ndarray) -> np.ndarray:
    """(N, C, H, W) of (N, H, W), (N, C, H, W) or (N, H, W, C) images; where both could be meant the channels are first."""
    if images.ndim == 3:
        return images[:, None]
    last = images.ndim == 4 and images.shape[3] in _CHANNELS and images.shape[1] not in _CHANNELS
    return images.transpose(0, 3, 1, 2) if last else images


def _length(values: Any) -> int | None:
    try:
        return len(values)
    except TypeError:
        return None
