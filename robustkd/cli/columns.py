"""Tables that fit the terminal: of columns that do not fit beside each other, some follow below the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

_GAP = 2
"""Cells between two columns."""


@dataclass(frozen=True)
class Column:
    """A name and a cell for each row.

    Attributes:
        detail: can do without the columns beside it.
        wraps: its cells may go over several lines.
    """

    name: str
    cells: Sequence[str | Text]
    justify: Literal["left", "right"] = "right"
    detail: bool = False
    wraps: bool = False


def parts(columns: Sequence[Column], screen: Console, *, names: int = 1) -> list[list[Column]]:
    """All of them where they fit beside each other; else as many at a time as fit, the details below the rest.

    Args:
        names: how many of the first columns name a row; every part begins with them.
    """

    def fits(together: Sequence[Column], *, wrapped: bool = True) -> bool:
        wanted = sum(_width(column, wrapped=wrapped) for column in together)
        return wanted + _GAP * (len(together) - 1) <= screen.width

    if fits(columns, wrapped=False):
        return [list(columns)]
    found: list[list[Column]] = []
    for detail in (False, True):
        part: list[Column] = []
        for column in (column for column in columns[names:] if column.detail is detail):
            if not part or not fits([*part, column]):
                found.append(part := list(columns[:names]))
            part.append(column)
    return found


def _width(column: Column, *, wrapped: bool) -> int:
    """Of its longest line; ``wrapped``, of its longest word where it may wrap."""
    texts = [column.name, *map(str, column.cells)]
    lines = [word for text in texts for word in text.split()] if wrapped and column.wraps else texts
    return max(map(cell_len, lines), default=0)


def table(columns: Sequence[Column]) -> Table:
    """One of the parts, ready to be printed."""
    made = Table(box=None, pad_edge=False)
    for column in columns:
        made.add_column(column.name, justify=column.justify, no_wrap=not column.wraps)
    for cells in zip(*(column.cells for column in columns), strict=True):
        made.add_row(*cells)
    return made


def print_parts(columns: Sequence[Column], screen: Console, *, names: int = 1) -> int:
    """Print them with a blank line between the parts, and return how many these are."""
    found = parts(columns, screen, names=names)
    for number, part in enumerate(found):
        screen.print(*([""] if number else []), table(part), sep="\n")
    return len(found)
