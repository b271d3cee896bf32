"""Line plots for the page: geometry only, in percent of the plot's area.

The page draws lines in a stretched SVG and sets every label as HTML text, so a plot fits any width and its text keeps its
size: a picture of a plot is either too small on a phone or too large on a desk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from robustkd.reporting.formatting import THIN, interval, number, percent
from robustkd.reporting.palette import DASHES, SERIES
from robustkd.reporting.summary import joined
from robustkd.reporting.terms import ReportTerms
from robustkd.scoring.results import CurvePoint


@dataclass(frozen=True)
class Series:
    """One line's data; ``low`` and ``high`` are its band, ``told`` the text of each point.

    ``joined`` says of each point whether the line leads to it from the one before; all by default. One that stands alone has whiskers.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    told: Sequence[str] = ()
    joined: Sequence[bool] = ()

    @classmethod
    def of_points(cls, label: str, points: Sequence[CurvePoint], told: Sequence[str], joined: Sequence[bool] = ()) -> Series:
        """Robust accuracy with its interval, at each eps."""
        return cls(
            label,
            [p.eps for p in points],
            [p.robust_accuracy for p in points],
            [p.ci_low for p in points],
            [p.ci_high for p in points],
            told,
            joined,
        )


@dataclass(frozen=True)
class Tick:
    """A label at ``at`` percent of an axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Dot:
    """A point to hover, in percent from the left and from the top."""

    x: float
    y: float
    told: str


@dataclass(frozen=True)
class Line:
    """A drawn series: SVG paths in a 100 x 100 box, and the style to draw them in."""

    label: str
    colour: int
    dash: str
    path: str
    band: str
    dots: tuple[Dot, ...]


@dataclass(frozen=True)
class Plot:
    """A plot to draw; ``mark`` is the x of a vertical line, in percent."""

    title: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    x_label: str
    mark: float | None = None


def curve(label: str, points: Sequence[CurvePoint], terms: ReportTerms) -> Series:
    """Robust accuracy against eps (or attempts) as a series, drawn where it was measured."""
    kept = [p for p in points if math.isfinite(p.eps)]
    told = [f"{terms.point(p.eps)}: {percent(p.robust_accuracy)} ({interval(p.ci_low, p.ci_high)})" for p in kept]
    return Series.of_points(label, kept, told, joined(kept, everywhere=terms.measured_everywhere))


def plot(
    title: str,
    series: Sequence[Series],
    x_label: str,
    *,
    shares: bool = True,
    mark: float | None = None,
    n_ticks: int = 6,
    log_x: bool = False,
    share_text: bool = False,
) -> Plot | None:
    """Lay out a plot, or None when there is nothing to draw.

    Args:
        shares: whether the y axis is fixed to 0..100 %.
        mark: the x of a vertical line.
        log_x: whether x, which is above 0, is drawn by its logarithm.
        share_text: whether the values of y are told in percent though the axis is not fixed.
    """
    drawn = [(s, style) for style, s in enumerate(series) if len(s.x)]  # a series keeps its style when another has no data
    if not drawn:
        return None
    if log_x:
        drawn = [(replace(s, x=[math.log10(x) for x in s.x]), style) for s, style in drawn]
    axes = _around([s for s, _ in drawn], shares, mark)
    if log_x:
        axes = replace(axes, x_low=math.floor(axes.x_low), x_high=max(math.ceil(axes.x_high), math.floor(axes.x_low) + 1))
    places = range(int(axes.x_low), int(axes.x_high) + 1) if log_x else ticks(axes.x_low, axes.x_high, n_ticks)
    x_text = (lambda x: number(10.0**x, 12)) if log_x else number
    y_text = (lambda y: f"{100 * y:.3g}{THIN}%") if shares or share_text else number
    return Plot(
        title,
        tuple(_line(axes, s, style) for s, style in drawn),
        tuple(Tick(axes.across(x), x_text(x)) for x in places),
        tuple(Tick(100 - axes.down(y), y_text(y)) for y in ticks(axes.y_low, axes.y_high, 5)),
        x_label,
        None if mark is None else axes.across(mark),
    )


@dataclass(frozen=True)
class Axes:
    """The ranges that a plot shows."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def across(self, x: float) -> float:
        """The horizontal position, in percent from the left."""
        return round(100 * (x - self.x_low) / (self.x_high - self.x_low), 2)

    def down(self, y: float) -> float:
        """The vertical position, in percent from the top."""
        return round(100 - 100 * (y - self.y_low) / (self.y_high - self.y_low), 2)


def _around(series: Sequence[Series], shares: bool, mark: float | None) -> Axes:
    """With every point, every band and the mark inside; of ``shares``, all of [0, 1]."""
    xs = [x for s in series for x in s.x] + ([mark] if mark is not None else [])
    ys = [y for s in series for y in (*s.y, *s.low, *s.high) if math.isfinite(y)]
    return Axes(*_span(min(xs), max(xs)), *((0.0, 1.0) if shares else _span(min(ys, default=0.0), max(ys, default=1.0))))


def _line(axes: Axes, s: Series, style: int) -> Line:
    spots = [(axes.across(x), axes.down(y)) for x, y in zip(s.x, s.y, strict=True) if math.isfinite(y)]
    lower = [(axes.across(x), axes.down(y)) for x, y in zip(s.x, s.low, strict=False)]
    upper = [(axes.across(x), axes.down(y)) for x, y in zip(s.x, s.high, strict=False)]
    told = s.told or [number(y) for y in s.y]
    dots = tuple(Dot(x, y, text) for (x, y), text in zip(spots, told, strict=False))
    path = band = ""
    for first, last in runs(s.joined or [place > 0 for place in range(len(spots))]):
        if last - first > 1 or not lower:
            path += _path(spots[first:last])
            band += _path([*upper[first:last], *reversed(lower[first:last])]) + "Z" if lower else ""
        elif lower:
            path += f"M{lower[first][0]:g} {lower[first][1]:g}V{upper[first][1]:g}"
    return Line(s.label, style % len(SERIES), DASHES[style // len(SERIES) % len(DASHES)], path, band, dots)


def runs(joined: Sequence[bool]) -> list[tuple[int, int]]:
    """Where the stretches of points that are joined begin and end (the point after the last)."""
    begins = [place for place, before in enumerate(joined) if not before]
    return list(zip(begins, [*begins[1:], len(joined)], strict=False))


def ticks(low: float, high: float, n: int) -> list[float]:
    """About ``n`` round numbers (1, 2, 2.5 or 5 times a power of ten apart) from ``low`` to ``high``."""
    raw = (high - low) / max(n - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def _span(low: float, high: float) -> tuple[float, float]:
    """The range to show; a single value gets room on both sides."""
    if high > low:
        return low, high
    pad = abs(low) / 2 or 0.5
    return low - pad, high + pad


def _path(spots: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in spots) if spots else ""
