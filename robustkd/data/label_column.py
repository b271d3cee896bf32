"""The labels of a table's rows: one class of each, or a list of the labels that hold together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robustkd.data.class_names import ClassNames

_NUMBER = re.compile(r"\s*(0|[1-9][0-9]{0,4})(\.0+)?\s*")
"""A class's number as a table writes it. 007 and 20260101 are names: they are codes, and no model has so many outputs."""


def labels_of(
    values: Sequence[Any], names: Sequence[str], classes: str | Path | None, of_texts: Sequence[str] = ()
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The labels of N rows, and what they are called, where anything says so.

    Args:
        values: of each row its class, as a number or a name; or a list: of the names of the labels that hold, of their numbers where
            there are ``names``, and else of 0 and 1, one for each label. Where all names are numbers, as a CSV has them, they are those.
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
    if missing := sum(None in row or "" in row for row in rows):
        raise ValueError(f"{missing} of {len(rows)} rows have no label")
    rows = [[_entry(entry) for entry in row] for row in rows]
    entries = {entry for row in rows for entry in row}
    if classes is None and not names and entries and _are_numbers(entries) and _are_numbers(of_texts):
        written = [[int(float(entry)) for entry in row] for row in rows]
        return _numbered(written, len(of_texts)) if several else (np.array(written, np.int64)[:, 0], ())
    numbers = not any(isinstance(entry, str) for entry in entries)
    names = names or (() if numbers else of_texts)
    if several and numbers and not names:
        return _flags(rows, entries, classes)
    if numbers and not several and classes is None:
        return np.array([row[0] for row in rows], np.int64), tuple(names)
    if names and (outside := [entry for entry in entries if not isinstance(entry, str) and not 0 <= entry < len(names)]):
        raise ValueError(f"the label {outside[0]} is none of {', '.join(names)}")
    called = [[names[entry] if names and not isinstance(entry, str) else str(entry) for entry in row] for row in rows]
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


def _entry(entry: Any) -> str | int:
    """A label as it is, of a float its whole number."""
    if isinstance(entry, str | int):
        return entry
    try:
        whole = int(entry)
    except (TypeError, ValueError, OverflowError):
        whole = None
    if whole is None or whole != entry:
        raise ValueError(f"the label {entry!r} is no whole number")
    return whole


def _are_numbers(texts: Iterable[Any]) -> bool:
    """Whether each is a text with a number in it. By the alphabet 10 would come before 2."""
    return all(isinstance(text, str) and _NUMBER.fullmatch(text) for text in texts)


def _numbered(rows: Sequence[Sequence[int]], labels: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Lists of the numbers of the labels that hold, as (N, L) of 0 and 1, where there are ``labels`` or more."""
    if any(len(set(row)) < len(row) for row in rows):
        raise ValueError("a row has a label twice: 0 and 1 for each label are stored as numbers, not as texts")
    flags = np.zeros((len(rows), max(labels, 1 + max(max(row, default=0) for row in rows))), np.int64)
    for flag, row in zip(flags, rows, strict=True):
        flag[row] = 1
    return flags, tuple(map(str, range(flags.shape[1])))


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
