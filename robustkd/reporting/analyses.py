"""The campaign's analyses as tables to show: means over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from robustkd.contracts.analysis import Table
from robustkd.reporting.formatting import number, words
from robustkd.reporting.palette import heat
from robustkd.scoring.results import Results


@dataclass(frozen=True)
class ShownTable:
    """One analysis of one defense.

    Attributes:
        table: its values are means over the seeds that have one.
        seeds: how many these are.
    """

    analysis: str
    defense: str
    table: Table
    seeds: int

    def text(self, value: float) -> str:
        """A value as it is written: percent for shares."""
        return f"{100 * value:.1f}" if self.table.shares else number(value, 3)

    def fill(self, value: float) -> str | None:
        """The colour behind it: that of what is left, as in the heat map of robust accuracy."""
        return heat(1 - value) if self.table.shares else None


@dataclass(frozen=True)
class Measures:
    """What the analyses found of each defense, in a few numbers: one row each, to compare.

    Attributes:
        names: of the metrics; with the analysis's where two share one.
        rows: defense, and a text for each metric ("" where it was not analysed so).
    """

    names: list[str]
    rows: list[tuple[str, list[str]]]


def measures(results: Results) -> Measures:
    """The metrics of all analyses; empty where there are fewer than two defenses to compare."""
    shown = shown_tables(results)
    analyses: dict[str, set[str]] = {}
    for item in shown:
        for metric in item.table.metrics:
            analyses.setdefault(metric, set()).add(item.analysis)
    found: dict[str, dict[str, str]] = {}
    for item in shown:
        for metric, value in item.table.metrics.items():
            name = words(metric) if len(analyses[metric]) == 1 else f"{words(metric)} ({item.analysis})"
            found.setdefault(item.defense, {})[name] = item.text(value)
    names = list(dict.fromkeys(name for row in found.values() for name in row))
    rows = [(defense, [row.get(name, "") for name in names]) for defense, row in found.items()]
    return Measures(names, rows) if len(rows) > 1 else Measures([], [])


def shown_tables(results: Results) -> list[ShownTable]:
    """One for each analysis and defense, in the campaign's order of defenses."""
    names = dict.fromkeys((name, row.defense) for row in results.defenses for name in row.analyses)
    return [
        ShownTable(name, defense, _mean(tables), len(tables))
        for name, defense in names
        if (tables := [row.analyses[name] for row in results.defenses if row.defense == defense and name in row.analyses])
    ]


def _mean(tables: Sequence[Table]) -> Table:
    first, count = tables[0], len(tables)
    grids = [table.values for table in tables]
    values = [[sum(cells) / count for cells in zip(*rows, strict=True)] for rows in zip(*grids, strict=True)]
    metrics = {name: sum(table.metrics[name] for table in tables) / count for name in first.metrics}
    return Table(first.caption, first.rows, first.columns, values, first.shares, metrics, parts=first.parts)
