"""The campaign's analyses as tables to show: means over seeds, and how far the seeds are apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from robustkd.contracts.analysis import Table
from robustkd.reporting.formatting import number, words
from robustkd.reporting.palette import heat
from robustkd.scoring.intervals import seeds_interval
from robustkd.scoring.results import Results


@dataclass(frozen=True)
class ShownTable:
    """One analysis of one defense.

    Attributes:
        table: its values are means over the seeds that have one.
        seeds: how many these are.
        spread: of the metrics, the 95 % interval over the seeds, where there are three or more.
    """

    analysis: str
    defense: str
    table: Table
    seeds: int
    spread: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def in_percent(self) -> bool:
        """Whether the values are shares."""
        return self.table.shares or self.table.standing

    def text(self, value: float) -> str:
        """A value as it is written: percent for shares."""
        return f"{100 * value:.1f}" if self.in_percent else number(value, 3)

    def metric(self, name: str) -> str:
        """A metric as it is written: the mean over the seeds, and its interval where there is one."""
        text = self.text(self.table.metrics[name])
        if name not in self.spread:
            return text
        low, high = map(self.text, self.spread[name])
        return f"{text} [{low}, {high}]" if (low, high) != (text, text) else text

    def fill(self, value: float) -> str | None:
        """The colour behind it: that of what is left, as in the heat map of robust accuracy."""
        return heat(value if self.table.standing else 1 - value) if self.in_percent else None


@dataclass(frozen=True)
class Measures:
    """What the analyses found of each defense, in a few numbers: one row each, to compare.

    Attributes:
        names: of the metrics; with the analysis's where two share one.
        rows: defense, and a text for each metric ("" where it was not analysed so).
        intervals: whether some have an interval over the seeds.
    """

    names: list[str]
    rows: list[tuple[str, list[str]]]
    intervals: bool = False


def measures(results: Results) -> Measures:
    """The metrics of all analyses; empty where there are fewer than two defenses to compare."""
    shown = shown_tables(results)
    analyses: dict[str, set[str]] = {}
    for item in shown:
        for metric in item.table.metrics:
            analyses.setdefault(metric, set()).add(item.analysis)
    found: dict[str, dict[str, str]] = {}
    for item in shown:
        for metric in item.table.metrics:
            name = words(metric) if len(analyses[metric]) == 1 else f"{words(metric)} ({item.analysis})"
            found.setdefault(item.defense, {})[name] = item.metric(metric)
    names = list(dict.fromkeys(name for row in found.values() for name in row))
    rows = [(defense, [row.get(name, "") for name in names]) for defense, row in found.items()]
    return Measures(names, rows, any(item.spread for item in shown)) if len(rows) > 1 else Measures([], [])


def shown_tables(results: Results) -> list[ShownTable]:
    """One for each analysis and defense, in the campaign's order of defenses."""
    names = dict.fromkeys((name, row.defense) for row in results.defenses for name in row.analyses)
    return [
        ShownTable(name, defense, _mean(tables), len(tables), _spread(tables))
        for name, defense in names
        if (tables := [row.analyses[name] for row in results.defenses if row.defense == defense and name in row.analyses])
    ]


def _mean(tables: Sequence[Table]) -> Table:
    first, count = tables[0], len(tables)
    grids = [table.values for table in tables]
    values = [[sum(cells) / count for cells in zip(*rows, strict=True)] for rows in zip(*grids, strict=True)]
    metrics = {name: sum(table.metrics[name] for table in tables) / count for name in first.metrics}
    return replace(first, values=values, metrics=metrics, certificate=None)


def _spread(tables: Sequence[Table]) -> dict[str, tuple[float, float]]:
    """Of each metric that tells a number of the data; the ends of an interval are none."""
    found: dict[str, tuple[float, float]] = {}
    for name in tables[0].metrics:
        if name.removesuffix("_low").removesuffix("_high") == name:
            interval = seeds_interval([table.metrics[name] for table in tables])
            found |= {} if interval is None else {name: interval}
    return found
