"""Labels that may hold together, (N, L) of 0 and 1, as the classes that an attack is judged by.

What the attacker is after says which classes these are. Where he is to flip one label there are two, without it and with it. Where any
label will do, every set of labels is a class.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from robustkd.contracts import Arrays, DataError, DeferredArrays, RawData, UsageError, suggestion

Label = int | Literal["any"]
"""The label that is to be flipped, by its number, or that any is a success."""
MOST_LABELS = 10
"""Of so many labels every set is a class of its own: 1,024."""


def require_labels(label: Label, labels: int) -> None:
    """Refuse a success that cannot be looked at.

    Raises:
        UsageError: there is no such label among so many, or there are too many for all of them to be looked at together.
    """
    if label == "any" and labels > MOST_LABELS:
        raise UsageError(
            f"success is that any of {labels} labels is flipped, of which {MOST_LABELS} at most can be looked at together",
            fix="name one: success={'label': 3}",
        )
    if isinstance(label, int) and not 0 <= label < labels:
        raise UsageError(f"success names the label {label}, of {labels}", fix=f"use 0..{labels - 1}")


def classes_of(labels: np.ndarray, label: Label) -> np.ndarray:
    """(N, L) of 0 and 1 -> (N,) int64: whether ``label`` holds, or of ``"any"`` the number whose bit l is label l.

    Raises:
        DataError: they are not (N, L), or not 0 and 1.
        UsageError: see ``require_labels``.
    """
    if labels.ndim != 2 or not np.isin(labels, (0, 1)).all():
        raise DataError(f"labels of shape {labels.shape} with success={label!r}", fix="give (N, L), 0 or 1 for each label")
    require_labels(label, labels.shape[1])
    bits = labels.astype(np.int64)
    return bits[:, label] if isinstance(label, int) else (bits << np.arange(bits.shape[1])).sum(1)


def names_of(names: Sequence[str], label: Label) -> tuple[str, ...]:
    """What the classes of ``classes_of`` are called, of labels with these names."""
    if isinstance(label, int):
        return f"not {names[label]}", names[label]
    sets = ([name for bit, name in enumerate(names) if number >> bit & 1] for number in range(2 ** len(names)))
    return tuple("+".join(each) or "none" for each in sets)


def numbered(parts: Iterable[np.ndarray]) -> tuple[str, ...]:
    """The numbers of the classes in these labels, (N,), or of the columns where they are (N, L)."""
    known = [part for part in parts if len(part)]
    count = max((part.shape[1] if part.ndim == 2 else 1 + int(part.max()) for part in known), default=1)
    return tuple(map(str, range(count)))


def with_success(
    raw: RawData[Any], success: Literal["any"] | Mapping[str, int | str] | None, name: str
) -> tuple[RawData[Any], Label | None]:
    """The data with one class for each sample, and what was made of ``success``; both as they are of data with classes.

    Raises:
        DataError: the labels are (N, L) and no success is said, or it is said of other labels.
        UsageError: there is no such label, or too many to look at all of them.
    """
    several = isinstance(raw.test, Arrays) and raw.test.labels.ndim == 2
    if success is None:
        if several:
            raise DataError(
                f"data '{name}': labels of shape {raw.test.labels.shape}: a row for each sample",
                fix="store the class of each sample where they are one-hot; where several labels may hold together, say what counts as a "
                "success: 'success: {label: 3}', that label 3 is flipped, or 'success: any'",
            )
        return raw, None
    if not several:
        raise DataError(
            f"data '{name}' have one class for each sample, and 'success' is about labels (N, L) that may hold together",
            fix="leave out 'success'",
        )
    asked = success if success == "any" else success["label"]
    if isinstance(asked, str) and asked != "any":
        if asked not in raw.classes:
            raise DataError(
                f"data '{name}' have no label '{asked}'",
                fix=suggestion(asked, raw.classes) or f"they have {', '.join(raw.classes)}",
            )
        asked = raw.classes.index(asked)
    label: Label = "any" if isinstance(asked, str) else asked

    def brought(part: Arrays | None) -> Arrays | None:
        if part is None:
            return None
        if part.labels.shape[1:] != (len(raw.classes),):
            raise DataError(
                f"data '{name}': labels of shape {part.labels.shape}, and {len(raw.classes)} names",
                fix="give a name for each label: classes",
            )
        try:
            labels = classes_of(part.labels, label)
        except (DataError, UsageError) as error:
            raise type(error)(f"data '{name}': {error.message}", fix=error.fix) from None
        if isinstance(part, DeferredArrays):
            return DeferredArrays(lambda rows: part.select(rows).images, labels, part.sample_shape)
        return Arrays(part.images, labels)

    parts = brought(raw.train), brought(raw.test), brought(raw.validation)
    told = _told(raw.classes, label)
    train, test, validation = parts
    classes = names_of(raw.classes, label)
    return replace(raw, train=train, test=test, validation=validation, classes=classes, notes=(*raw.notes, told)), label


def _told(names: Sequence[str], label: Label) -> str:
    if isinstance(label, int):
        return (
            f"of {len(names)} labels that may hold together the label '{names[label]}' counts: accuracy is the share of samples on which "
            "it is right, and an attack succeeds where it flips it"
        )
    return (
        f"{len(names)} labels may hold together: accuracy is the share of samples on which all of them are right, and an attack succeeds "
        "where it flips any"
    )
