"""A long tail: the training images of each class thinned, so that the first classes have many and the last ones few.

    n_k = n * imbalance^( -k / (K - 1) )        k = 0 .. K - 1,  n the images of the largest class

Source: Cui et al.: Class-balanced loss based on effective number of samples (CVPR 2019), arXiv:1901.05555, section 5.1, "long-tailed
CIFAR".
"""

from __future__ import annotations

from typing import Any

import numpy as np

from robustkd.contracts import Arrays, DataError


def thinned(train: Any, classes: int, imbalance: float, name: str) -> tuple[Arrays, np.ndarray]:
    """The first n_k training images of each class, in the order that they are in, and (K,) how many are left of each.

    A class keeps at least one image, and never more than it has.

    Args:
        train: the training part, whose order is random.
        classes: K.
        imbalance: images of the first class to those of the last, 1 or more.
        name: the data set, for the message.

    Raises:
        DataError: there are no training images, or the data are prompts.
    """
    if not isinstance(train, Arrays):
        what = "there is no training part" if train is None else "prompts have no classes"
        raise DataError(f"data '{name}': 'imbalance' thins the classes of training images, and {what}", fix="leave it out")
    labels = train.labels
    available = np.bincount(labels, minlength=classes)
    wanted = available.max() * imbalance ** (-np.arange(classes) / max(1, classes - 1))
    counts = np.minimum(available, np.maximum(1, np.rint(wanted).astype(np.int64)))
    by_class = np.argsort(labels, kind="stable")
    place = np.empty(len(labels), np.int64)
    place[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(available) - available, available)
    return train.select(np.flatnonzero(place < counts[labels])), counts
