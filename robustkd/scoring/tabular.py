"""Numbers as Python hands them on: a dict, JSON text, a DataFrame, and a table in a notebook."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from html import escape
from importlib import import_module
from typing import Any

from robustkd.contracts import UsageError
from robustkd.contracts.json_value import JsonValue
from robustkd.scoring.picture import Measured, svg

MOST_ROWS = 50
"""Rows that a notebook shows; the rest is in the DataFrame."""


class Tabular(ABC):
    """What reports and results share. A subclass says what its dict, its rows and its table in a notebook hold."""

    @abstractmethod
    def to_dict(self) -> dict[str, JsonValue]:
        """The numbers as plain Python: dicts, lists, texts and numbers that JSON can hold."""

    @abstractmethod
    def rows(self) -> list[dict[str, JsonValue]]:
        """The rows of the DataFrame, by column."""

    @abstractmethod
    def caption(self) -> str:
        """The result in a line: the number, its interval and, beside it, its verdict."""

    @abstractmethod
    def shown(self) -> list[dict[str, str]]:
        """The rows of the table in a notebook, by column."""

    def measured(self) -> list[Measured]:
        """The shares that a picture shows, with their intervals; none where there is nothing to draw."""
        return []

    def plot(self) -> Any:
        """A ``matplotlib.figure.Figure`` of the shares with their intervals.

        Raises:
            UsageError: there is no number to draw.
        """
        shown = [row for row in self.measured() if row.share is not None]
        if not shown:
            raise UsageError("there is no number to draw")
        # By its name: numbers do not know how they are shown.
        return import_module("robustkd.reporting.figures").shares(shown, self.caption())

    def to_json(self) -> str:
        """What ``to_dict`` gives, as JSON text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    def to_dataframe(self) -> Any:
        """A ``pandas.DataFrame`` of ``rows``.

        Raises:
            UsageError: pandas is not installed.
        """
        return dataframe(self.rows())

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.caption()}>"

    def _repr_html_(self) -> str:
        return html_table(self.caption(), self.shown()) + svg(self.measured())


def dataframe(rows: Any) -> Any:
    """A ``pandas.DataFrame`` of rows or columns; pandas is imported here, for its import takes a second.

    Raises:
        UsageError: pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise UsageError("a DataFrame needs pandas, which is not installed", fix="pip install pandas") from error
    return pd.DataFrame(rows)


def html_table(caption: str, rows: Sequence[Mapping[str, str]]) -> str:
    """Rows of text as an HTML table with a caption; everything is escaped."""
    head = "".join(f"<th>{escape(name)}</th>" for name in (rows[0] if rows else ()))
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row.values()) + "</tr>" for row in rows[:MOST_ROWS])
    more = f"<p>{len(rows) - MOST_ROWS} more rows: to_dataframe() has them.</p>" if len(rows) > MOST_ROWS else ""
    caption = f'<caption style="text-align: left">{escape(caption)}</caption>'
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def percent(share: float | None) -> str:
    """A share as a percentage with one digit; "-" where there is none."""
    return "-" if share is None else f"{share:.1%}"


def interval(low: float | None, high: float | None) -> str:
    """Both ends of an interval of a share."""
    return "-" if low is None or high is None else f"[{low:.1%}, {high:.1%}]"
