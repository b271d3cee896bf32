"""The labels of a table's rows: one class of each, or a list of the labels that hold together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robustkd.data.class_names import ClassNames


def labels_of(
    values: Sequence[Any], names: Sequence[str], classes: str | Path | None, of_texts: Sequence[str] = ()
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The labels of N rows, and what they are called, where anything says so.

    Args:
        values: of each row its class, as a number or a name; or a list: of the names of the labels that hold, of their numbers where
            there are ``names``, and else of 0 and 1, one for each label.
        names: of the classes by their numbers, where the table tells them; () where it does not.
        classes: which output of the model each is, see ``ClassNames.of``; by default they are in the order of ``names``, or of the
            alphabet.
        of_texts: the ``names`` where the values are texts, as another part of the data has them.

    Returns:
        (N,) int64, or (N, L) int64 of 0 and 1.

    Raises:
        ValueError: they are neither.
        DataError: ``classes`` does not fit them.
    """
    several = sum(isinstance(value, list) for value in values)
    if several not in (0, len(values)):
        raise ValueError(f"{several} of {len(values)} rows have a list of labels, and the others one label")
    rows = [value if several else [value] for value in values]
    entries = {entry for row in rows for entry in row}
    if missing := sum(None in row for row in rows):
        raise ValueError(f"{missing} of {len(rows)} rows have no label")
    numbers = not any(isinstance(entry, str) for entry in entries)
    names = names or (() if numbers else of_texts)
    if several and numbers and not names:
        return _flags(rows, entries, classes)
    if numbers and not several and classes is None:
        return np.array(values, np.int64), tuple(names)
    called = [[names[int(entry)] if names and not isinstance(entry, str) else str(entry) for entry in row] for row in rows]
    found = sorted({name for row in called for name in row})
    if classes is None and names:
        known = ClassNames({name: place for place, name in enumerate(names)}, tuple(names))
    else:
        known = ClassNames.of(classes, found)
    if strange := [name for name in found if name not in known.index]:
        raise ValueError(f"the label '{strange[0]}' is none of {', '.join(names)}")
    places = [[known.index[name] for name in row] for row in called]
    if not several:
        return np.array(places, np.int64)[:, 0], known.names
    flags = np.zeros((len(rows), len(known.names)), np.int64)
    for flag, row in zip(flags, places, strict=True):
        flag[row] = 1
    return flags, known.names


def _flags(rows: Sequence[list[Any]], entries: set[Any], classes: str | Path | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Lists of 0 and 1, which only a file of ``classes`` can give names."""
    lengths = {len(row) for row in rows}
    if len(lengths) > 1 or entries - {0, 1}:
        raise ValueError(
            "lists of labels are neither names nor 0 or 1 for each label: store the names of those that hold, or 0 or 1 for each"
        )
    names = ClassNames.read(classes).names if isinstance(classes, Path) else ()
    if names and lengths != {len(names)}:
        raise ValueError(f"the lists have {len(rows[0])} labels, {classes} names {len(names)}")
    return np.array(rows, np.int64), names
