"""Clean against robust accuracy: one point a defense, the Pareto front, and published figures apart from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from robustkd.reporting.palette import DASHES, SERIES
from robustkd.reporting.plots import Axes, Tick, ticks
from robustkd.reporting.published import Published
from robustkd.reporting.summary import DefenseSummary

ROOM, LEAST_ROOM = 0.1, 0.01
"""Free space around the points: a share of their range, and in accuracy."""
N_TICKS = 5
MOST_LINES = len(SERIES) * len(DASHES)
"""Defenses in a chart: as many as its lines can be told apart."""
LETTERS = ("", *ascii_uppercase)
"""What comes before the letter of the first 26 points, the next 26, and so on."""


@dataclass(frozen=True)
class ChartPoint:
    """A measured defense, in percent from the left and from the top; ``low`` and ``high`` end its interval.

    Attributes:
        letter: what it is called in the chart.
        style: of its lines in the other charts.
        best: on the Pareto front.
        doubted: its verdict is `not credible`; such a number is on no front.
    """

    row: DefenseSummary
    letter: str
    x: float
    y: float
    low: float
    high: float
    style: int
    best: bool
    doubted: bool


@dataclass(frozen=True)
class Reference:
    """A published figure with its number in the chart."""

    number: int
    figure: Published
    x: float
    y: float


@dataclass(frozen=True)
class Tradeoff:
    """The chart as geometry; ``front`` is an SVG path in a 100 x 100 box."""

    spots: tuple[ChartPoint, ...]
    references: tuple[Reference, ...]
    front: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


_Measured = tuple[int, DefenseSummary, float, float]
"""A defense's place in the campaign, its summary, clean and robust accuracy."""


def tradeoff(summaries: Sequence[DefenseSummary], published: Sequence[Published] = ()) -> Tradeoff | None:
    """Lay out the chart, or None with fewer than two defenses to compare."""
    measured = [(style, row, *both) for style, row in enumerate(summaries) if (both := _accuracies(row))]
    if len(measured) < 2:
        return None
    axes = _around(measured, published)
    front = pareto([(clean, robust) for _, row, clean, robust in measured if row.verdict != "not credible"])
    spots = tuple(_spot(axes, *one, front=front) for one in measured)
    return Tradeoff(
        spots,
        tuple(Reference(n, item, axes.across(item.clean), axes.down(item.robust)) for n, item in enumerate(published, 1)),
        _staircase(sorted((spot.x, spot.y) for spot in spots if spot.best)),
        tuple(Tick(axes.across(x), f"{100 * x:g}") for x in ticks(axes.x_low, axes.x_high, N_TICKS)),
        tuple(Tick(100 - axes.down(y), f"{100 * y:g}") for y in ticks(axes.y_low, axes.y_high, N_TICKS)),
    )


def _around(measured: Sequence[_Measured], published: Sequence[Published]) -> Axes:
    """With every point and the ends of every interval inside, as accuracies in [0, 1]."""
    cleans = [clean for _, _, clean, _ in measured] + [item.clean for item in published]
    robusts = [robust for *_, robust in measured] + [item.robust for item in published]
    ends = [end for _, row, *_ in measured for end in (row.ci_low, row.ci_high) if end is not None]
    return Axes(*_span(cleans), *_span([*robusts, *ends]))


def _spot(
    axes: Axes, style: int, row: DefenseSummary, clean: float, robust: float, *, front: set[tuple[float, float]]
) -> ChartPoint:
    doubted = row.verdict == "not credible"
    return ChartPoint(
        row,
        LETTERS[style // 26] + ascii_uppercase[style % 26],
        axes.across(clean),
        axes.down(robust),
        axes.down(robust if row.ci_low is None else row.ci_low),
        axes.down(robust if row.ci_high is None else row.ci_high),
        style,
        not doubted and (clean, robust) in front,
        doubted,
    )


def pareto(points: Sequence[tuple[float, float]]) -> set[tuple[float, float]]:
    """The points that no other beats in one number while it equals or beats them in the other."""
    return {(x, y) for x, y in points if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points)}


def shown_defenses(summaries: Sequence[DefenseSummary]) -> list[DefenseSummary]:
    """The defenses that charts show, in the campaign's order: all that can be told apart, the Pareto front first of all."""
    if len(summaries) <= MOST_LINES:
        return list(summaries)
    known = [(row, both) for row in summaries if (both := _accuracies(row))]
    front = pareto([both for row, both in known if row.verdict != "not credible"])
    ranked = sorted(known, key=lambda item: (item[1] not in front, -item[1][1]))
    kept = {row.defense for row, _ in ranked[:MOST_LINES]}
    return [row for row in summaries if row.defense in kept]


def _accuracies(row: DefenseSummary) -> tuple[float, float] | None:
    if row.clean_accuracy is None or row.robust_accuracy is None:
        return None
    return row.clean_accuracy, row.robust_accuracy


def _span(values: Sequence[float]) -> tuple[float, float]:
    """The range to show, inside [0, 1]: close up, since defenses that are worth comparing lie close together."""
    room = max(ROOM * (max(values) - min(values)), LEAST_ROOM)
    return max(min(values) - room, 0.0), min(max(values) + room, 1.0)


def _staircase(spots: Sequence[tuple[float, float]]) -> str:
    """What the best points reach together: no straight line, since no mixture of two defenses was measured."""
    steps = "V".join(f"{y:g}H{x:g}" for x, y in spots)
    return f"M0 {steps}V100" if spots else ""
