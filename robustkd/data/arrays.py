"""The types that the data contract asks for, from whatever a file or a plug-in gives."""

from __future__ import annotations

import numpy as np

from robustkd.contracts import Arrays, DataError


def as_arrays(images: np.ndarray, labels: np.ndarray, name: str) -> Arrays:
    """``Arrays`` of uint8 or float32 images and int64 labels; ranges and shapes are left to ``Arrays.validated``.

    Args:
        name: the data set, for the message.

    Raises:
        DataError: the images are neither uint8 nor floating point, or the labels are not integers.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8:
        if images.dtype.kind != "f":
            raise DataError(f"data '{name}': images are {images.dtype}", fix="store them as uint8, or as floats in [0, 1]")
        images = images.astype(np.float32, copy=False)
    return Arrays(np.ascontiguousarray(images), as_labels(labels, name))


def as_labels(labels: np.ndarray, name: str) -> np.ndarray:
    """int64 labels; of labels that may hold together, (N, L), also those that are 0.0 and 1.0, or True and False.

    Raises:
        DataError: they are not integers.
    """
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.dtype.kind in "bf" and np.isin(labels, (0, 1)).all():
        return labels.astype(np.int64)
    if labels.dtype.kind not in "iu":
        raise DataError(f"data '{name}': labels are {labels.dtype}", fix="store them as integers 0..K-1")
    return labels.astype(np.int64, copy=False)
