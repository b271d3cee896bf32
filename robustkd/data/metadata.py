"""Labels of an image folder that stand in a table beside the images, as Hugging Face's image folders have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from robustkd.contracts import DataError
from robustkd.data.samples import LABEL_KEYS
from robustkd.data.tables import read_jsonl, read_table

_FILE = "file_name"
_TRUTH = {"1": True, "0": False, "true": True, "false": False, "1.0": True, "0.0": False}
_MINUS = ("-1", "-1.0")


def metadata_of(folder: Path) -> Path | None:
    """The table of a folder, ``metadata.jsonl`` or ``metadata.csv`` that names files, or None."""
    for table in (folder / "metadata.jsonl", folder / "metadata.csv"):
        if table.is_file():
            with table.open(encoding="utf-8-sig", errors="replace") as lines:
                if _FILE in lines.readline():
                    return table
    return None


def listed(table: Path) -> tuple[list[Path], list[Any], tuple[str, ...]]:
    """The files that a table names, by a path from its folder, their labels, and what the labels are called where its columns say so.

    The labels are those of a column ``label`` or ``labels``. Without one every other column is a label, which holds where it is 1 or true,
    and a row has a list of those that hold. Where nothing is 0, -1 says that a label does not hold, as in CelebA.

    Raises:
        DataError: the table cannot be read, a file is missing, or a label is neither.
    """
    rows = [row for _, row in read_jsonl(table)] if table.suffix == ".jsonl" else read_table(table, (_FILE,))
    if not rows or any(not isinstance(row.get(_FILE), str) for row in rows):
        raise DataError(
            f"{table}: not every row has a '{_FILE}'", fix=f'give each, such as {{"{_FILE}": "1.png", "labels": ["cat"]}}'
        )
    files = [table.parent / str(row[_FILE]) for row in rows]
    if missing := [file for file in files if not file.is_file()]:
        raise DataError(f"{table} names {missing[0]}, which is not there", fix="give paths from the table's own folder")
    column = next((key for key in LABEL_KEYS if key in rows[0]), None)
    if column is not None:
        return files, [row.get(column) for row in rows], ()
    names = tuple(name for name in rows[0] if name != _FILE)
    if not names:
        raise DataError(f"{table} has no labels", fix="add a column 'label', or one of 0 and 1 for each label")
    zero = any(_truth(row.get(name)) is False for row in rows for name in names)
    return files, [[name for name in names if _holds(row.get(name), table, name, zero=zero)] for row in rows], names


def _truth(value: Any) -> bool | None:
    """None of what is neither 1 nor 0."""
    return _TRUTH.get(str(value).strip().lower())


def _holds(value: Any, table: Path, name: str, *, zero: bool) -> bool:
    """Whether a label holds, in a table in which one is 0 or not; beside 0, -1 means something else, as "uncertain" in CheXpert."""
    known = _truth(value)
    if known is not None:
        return known
    minus = str(value).strip() in _MINUS
    if minus and not zero:
        return False
    raise DataError(
        f"{table}: the label '{name}' is {value!r}" + (", and others are 0" if minus else ""),
        fix="write 1 or 0; or name the column of the classes 'label', or 'labels' of lists",
    )
