"""Tables of texts from the user's files: CSV with named columns, JSON and JSON lines."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from robustkd.contracts import DataError, suggestion
from robustkd.contracts.json_value import JsonObject


def read_table(file: Path, columns: Sequence[str] = ()) -> list[dict[str, str]]:
    """The rows of a file in UTF-8: a CSV whose first row names the columns, a JSON list of objects (.json), or JSON lines (.jsonl).

    A cell that a row lacks is empty.

    Args:
        columns: those that must be there.

    Raises:
        DataError: it cannot be read, has no rows, or lacks a column; it names the file and the column.
    """
    readers = {".json": _json_rows, ".jsonl": _jsonl_rows}
    names, rows = readers.get(file.suffix.lower(), _csv_rows)(file)
    for column in columns:
        if column not in names:
            raise DataError(f"{file} has no column '{column}'", fix=suggestion(column, names) or f"it has {', '.join(names)}")
    if not rows:
        raise DataError(f"{file} has no rows", fix="give a row for each prompt below the names of the columns")
    return rows


def _csv_rows(file: Path) -> tuple[list[str], list[dict[str, str]]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines, _cells_of_any_size():
            if lines.read(1) in ("{", "["):
                raise DataError(
                    f"{file} is JSON, not CSV", fix="name it .json (a list of objects) or .jsonl (an object in each line)"
                )
            lines.seek(0)
            reader = csv.DictReader(lines, restval="", strict=True)
            names = [name for name in reader.fieldnames or () if name]
            rows = list(reader)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}", fix="correct the path") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{file} is no CSV in UTF-8: {error}", fix="save it as CSV, separated by commas, in UTF-8") from error
    for row in rows:
        if None in row:  # more cells than names
            raise DataError(f"{file}: a row has more cells than there are columns: {row[None]}", fix="quote texts with commas")
    return names, rows


def _json_rows(file: Path) -> tuple[list[str], list[dict[str, str]]]:
    try:
        found = json.loads(_text(file))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is no JSON: {error}", fix="name a file with an object in each line .jsonl") from error
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise DataError(
            f"{file} is no list of objects", fix='give [{"prompt": ..}, ..], the columns of each row by their names'
        )
    return _of_texts((f"{file}, row {number}", row) for number, row in enumerate(found, 1))


def _jsonl_rows(file: Path) -> tuple[list[str], list[dict[str, str]]]:
    return _of_texts(read_jsonl(file))


def _of_texts(placed: Iterable[tuple[str, JsonObject]]) -> tuple[list[str], list[dict[str, str]]]:
    """The columns and rows, of texts alone: a number is written, and nothing is an empty text."""
    rows = list(placed)
    names = list(dict.fromkeys(name for _, row in rows for name in row))
    for place, row in rows:
        if odd := next((name for name, value in row.items() if isinstance(value, dict | list)), None):
            raise DataError(f"{place}: '{odd}' is no text", fix="give a text or a number for each column")
    written = [{name: "" if row.get(name) is None else str(row[name]) for name in names} for _, row in rows]
    return names, written


@contextmanager
def _cells_of_any_size() -> Iterator[None]:
    """The csv module refuses cells above 131,072 characters by default; a long prompt has more."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def read_jsonl(file: Path) -> Iterator[tuple[str, JsonObject]]:
    """The objects of a file of JSON lines, each with its place (``file, line 3``); empty lines are passed over.

    Raises:
        DataError: it cannot be read, or a line is no JSON object.
    """
    for number, line in enumerate(_text(file).split("\n"), 1):
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


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}", fix="correct the path") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not in UTF-8: {error}", fix="save it in UTF-8") from error
