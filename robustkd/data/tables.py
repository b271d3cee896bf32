"""Tables of texts from the user's files: CSV with named columns, and JSON lines."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from robustkd.contracts import DataError, suggestion


def read_csv(file: Path, columns: Sequence[str] = ()) -> list[dict[str, str]]:
    """The rows of a CSV in UTF-8 whose first row names the columns; cells that a short row lacks are empty.

    Args:
        columns: those that must be there.

    Raises:
        DataError: it cannot be read, has no rows, or lacks a column; it names the file and the column.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines, _cells_of_any_size():
            reader = csv.DictReader(lines, restval="", strict=True)
            names = [name for name in reader.fieldnames or () if name]
            rows = list(reader)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}", fix="correct the path") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{file} is no CSV in UTF-8: {error}", fix="save it as CSV, separated by commas, in UTF-8") from error
    if names and names[0].lstrip().startswith(("{", "[")):
        raise DataError(
            f"{file} is JSON, not CSV",
            fix="save it as CSV in UTF-8 whose first row names the columns, such as pandas' to_csv writes",
        )
    for column in columns:
        if column not in names:
            raise DataError(f"{file} has no column '{column}'", fix=suggestion(column, names) or f"it has {', '.join(names)}")
    if not rows:
        raise DataError(f"{file} has no rows", fix="give a row for each prompt below the names of the columns")
    for row in rows:
        if None in row:  # more cells than names
            raise DataError(f"{file}: a row has more cells than there are columns: {row[None]}", fix="quote texts with commas")
    return rows


@contextmanager
def _cells_of_any_size() -> Iterator[None]:
    """The csv module refuses cells above 131,072 characters by default; a long prompt has more."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def read_jsonl(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file of JSON lines, each with its place (``file, line 3``); empty lines are passed over.

    Raises:
        DataError: it cannot be read, or a line is no JSON object.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}", fix="correct the path") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not in UTF-8: {error}", fix="save it in UTF-8") from error
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"{file}, line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place} is no JSON: {error}", fix="give one JSON object in each line") from error
        if not isinstance(value, dict):
            raise DataError(
                f"{place} is no JSON object", fix='give one in each line, such as {"prompt": "..", "response": ".."}'
            )
        yield place, value
