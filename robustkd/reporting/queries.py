"""Robust accuracy by the number of queries, of the attacks that learn of a target by asking it alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from robustkd.reporting.formatting import count, interval, percent
from robustkd.reporting.plots import Plot, Series, plot
from robustkd.reporting.summary import cells_by_pair, mean_curve
from robustkd.scoring.results import CurvePoint, Results


@dataclass(frozen=True)
class QueryCurve:
    """One attack on one defense, over its seeds.

    Attributes:
        points: the number of queries (as ``eps``), robust accuracy and interval.
    """

    defense: str
    attack: str
    points: Sequence[CurvePoint]

    @property
    def told(self) -> list[str]:
        """One sentence for each point of a curve."""
        return [
            f"after {count(int(p.eps))}: {percent(p.robust_accuracy)} ({interval(p.ci_low, p.ci_high)})" for p in self.points
        ]


def query_curves(results: Results) -> list[QueryCurve]:
    """The curves of all defenses and attacks that have one."""
    found = []
    for (defense, attack), cells in cells_by_pair(results).items():
        curves = ([CurvePoint(p.queries, p.robust_accuracy, p.ci_low, p.ci_high) for p in cell.by_queries] for cell in cells)
        if points := mean_curve(curves):
            found.append(QueryCurve(defense, attack, points))
    return found


def query_plots(results: Results, defenses: Sequence[str]) -> list[Plot]:
    """A small plot for each attack, a line for each of ``defenses``."""
    curves = {(curve.attack, curve.defense): curve for curve in query_curves(results)}
    plots = []
    for attack in dict.fromkeys(attack for attack, _ in curves):
        series = [_series(defense, curves.get((attack, defense))) for defense in defenses]
        if drawn := plot(attack, series, "queries", n_ticks=4):
            plots.append(drawn)
    return plots


def _series(defense: str, curve: QueryCurve | None) -> Series:
    return Series(defense, [], []) if curve is None else Series.of_points(defense, curve.points, curve.told)
