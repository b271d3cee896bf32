"""What is asked of data sets of images."""

from __future__ import annotations

from typing import Any

import numpy as np

from robustkd.contracts import DataError, RawData
from robustkd.plugin_kit.subject import NotApplicable, Subject, require


def loads(subject: Subject) -> None:
    """It loads images (N, C, H, W) of pixels in [0, 1] or bytes, with a label for each and a name for each class."""
    raw = raw_data(subject)
    require(isinstance(raw, RawData), f"load returned a {type(raw).__name__}", "return a robustkd.contracts.RawData")
    require(len(set(raw.classes)) == len(raw.classes) > 1, f"classes are {raw.classes[:5]}", "two or more names, all different")
    for part in (raw.test, *([raw.train] if raw.train is not None else [])):
        part.validated(subject.name, len(raw.classes))
        require(part.labels.dtype == np.int64, f"labels are {part.labels.dtype}", "labels.astype('int64')")


def same_data(subject: Subject) -> None:
    """Loaded twice, it is the same data in the same order."""
    first, second = raw_data(subject), raw_data(subject)
    require(
        first.test.digest() == second.test.digest()
        and (first.train is None or second.train is None or first.train.digest() == second.train.digest()),
        "loaded twice, the samples differ",
        "sort what the file system lists; draw nothing",
    )


DATASET = (loads, same_data)


def raw_data(subject: Subject) -> RawData[Any]:
    """What the data set loads."""
    try:
        raw: RawData[Any] = subject.make().load()
    except DataError as error:
        raise NotApplicable(f"the data are not here: {error.message}") from None
    return raw
