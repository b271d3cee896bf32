"""What changed between two campaigns as one picture: each difference with its interval, and the line of no change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from robustkd.reporting.figures import _figure, _quiet, _save, _short
from robustkd.reporting.palette import INK

COLOURS = {"better": "#009e73", "worse": "#d55e00", "not told apart": "#5b6470"}


@dataclass(frozen=True)
class ForestRow:
    """A difference to draw, in percentage points; ``direction`` is a key of ``COLOURS``."""

    group: str
    label: str
    difference: float
    low: float
    high: float
    direction: str


def forest(rows: Sequence[ForestRow], title: str, x_label: str, path: Path) -> None:
    """Write a forest plot as PNG: one line a row, in their order, groups apart."""
    figure = _figure(7.6, 1.1 + 0.27 * (len(rows) + len({row.group for row in rows})))
    axes = figure.add_subplot()
    place, ticks, labels = 0.0, [], []
    group = None
    for row in rows:
        if row.group != group:
            group = row.group
            place += 1
            ticks.append(place)
            labels.append(_short(group, 34))
        place += 1
        colour = COLOURS[row.direction]
        axes.plot([row.low, row.high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
        axes.plot([row.difference], [place], "o", color=colour, markersize=4.5)
        ticks.append(place)
        labels.append(f"{_short(row.label, 34)}  ")
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set(ylim=(place + 0.8, 0.2), xlabel=x_label)
    axes.set_yticks(ticks, labels)
    groups = {row.group for row in rows}
    _quiet(axes)
    for label in axes.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() in {_short(name, 34) for name in groups} else "normal")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color="#e2e4e8", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    _save(figure, path)
