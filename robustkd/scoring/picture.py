"""Shares with their intervals as a picture of a few lines of SVG, for a table in a notebook: it loads nothing and needs no script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

MOST = 24
"""Rows of a picture."""
_LABEL, _BAR, _ROW = 180, 360, 22
"""Widths of the labels and of the axis from 0 to 100 %, and the height of a row, in pixels."""
_LINE, _GREY = "#0072b2", "#8a929c"


@dataclass(frozen=True)
class Measured:
    """A share in [0, 1] with its interval, and the clean accuracy beside it; None where there is none."""

    label: str
    share: float | None
    low: float | None = None
    high: float | None = None
    clean: float | None = None


def svg(rows: Sequence[Measured]) -> str:
    """The rows below each other: a dot for the share, a line for its interval, a tick for the clean accuracy; "" without a share."""
    shown = [row for row in rows if row.share is not None][:MOST]
    if not shown:
        return ""
    height = _ROW * (len(shown) + 1)
    grid = "".join(
        f'<path d="M{_LABEL + _BAR * part / 4:g} 0V{height - _ROW}" stroke="{_GREY}" stroke-opacity=".35"/>'
        f'<text x="{_LABEL + _BAR * part / 4:g}" y="{height - 5}" text-anchor="middle" fill="{_GREY}">{25 * part} %</text>'
        for part in range(5)
    )
    body = "".join(_row(row, _ROW * (place + 0.5)) for place, row in enumerate(shown))
    told = escape("; ".join(f"{row.label} {100 * (row.share or 0):.1f} %" for row in shown), quote=True)
    # Without a name space: inside of HTML it needs none.
    return (
        f'<svg width="{_LABEL + _BAR + 30}" height="{height}" role="img" aria-label="{told}" '
        f'style="font: 12px sans-serif; display: block; max-width: 100%">{grid}{body}</svg>'
    )


def _row(row: Measured, y: float) -> str:
    def at(share: float) -> float:
        return round(_LABEL + _BAR * min(1.0, max(0.0, share)), 1)

    assert row.share is not None
    label = row.label if len(row.label) <= 26 else row.label[:25] + "…"
    parts = [f'<text x="{_LABEL - 10}" y="{y + 4:g}" text-anchor="end" fill="currentColor">{escape(label)}</text>']
    if row.low is not None and row.high is not None:
        parts.append(f'<path d="M{at(row.low)} {y:g}H{at(row.high)}" stroke="{_LINE}" stroke-width="3" stroke-opacity=".5"/>')
    if row.clean is not None:
        parts.append(f'<path d="M{at(row.clean)} {y - 6:g}v12" stroke="{_GREY}" stroke-width="2"/>')
    parts.append(f'<circle cx="{at(row.share)}" cy="{y:g}" r="4.5" fill="{_LINE}"/>')
    return "".join(parts)
