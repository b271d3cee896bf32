"""A table whose first columns are the parts of a whole is drawn as bars, one for each row, each as long as the whole."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from robustkd.contracts import Table
from robustkd.reporting.analyses import ShownTable
from robustkd.reporting.figures import _bars, _heat_map


def shown(parts: int) -> ShownTable:
    table = Table(
        "of 10 images",
        ["clean", "attacked"],
        ["early", "late", "beyond", "ratio"],
        [[0.75, 0.25, 0.25, 1.0], [0.5, 0.5, 0.5, 1.4]],
        parts=parts,
    )
    return ShownTable("slowdown", "exits", table, 3)


def test_the_bars_of_a_row_add_up_and_what_follows_is_written_beside_them():
    axes = Figure().add_subplot()
    _bars(axes, shown(2))
    bars = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    rows: dict[float, list[Rectangle]] = {}
    for bar in bars:
        rows.setdefault(round(bar.get_y(), 3), []).append(bar)
    assert [[bar.get_width() for bar in row] for row in rows.values()] == [[0.75, 0.25], [0.5, 0.5]]
    for row in rows.values():
        assert row[0].get_x() == 0
        assert row[1].get_x() == row[0].get_width()
    said = [text.get_text() for text in axes.texts]
    assert "beyond 0.5, ratio 1.4" in said
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["early", "late"]


def test_other_tables_are_heat_maps():
    axes = Figure().add_subplot()
    _heat_map(axes, shown(0))
    assert len(axes.patches) == 8
