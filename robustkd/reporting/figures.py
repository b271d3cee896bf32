"""The figures as PNG files, for a README, a chat or MLflow: light, and readable on their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from robustkd.lazy import large_import
from robustkd.reporting.analyses import ShownTable, shown_tables
from robustkd.reporting.formatting import threat
from robustkd.reporting.gallery import GalleryItem, Item, selected, thumbnail
from robustkd.reporting.grid import GridCell, grid
from robustkd.reporting.palette import HEAT, INK, SERIES, heat, readable_on
from robustkd.reporting.plots import runs
from robustkd.reporting.presentation import terms_of
from robustkd.reporting.summary import DefenseSummary, attack_names, curve_of, joined, mean_curve
from robustkd.reporting.tradeoff import shown_defenses
from robustkd.reporting.verdict_text import NO_VERDICT
from robustkd.scoring.picture import Measured
from robustkd.scoring.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 160
MARKERS = "osD^vP*X"
MOST_TABLES = 12
"""Of analyses in their picture; the page has all."""
GALLERY_COLUMNS = 12
WIDEST_UPRIGHT = 11
"""Longer names of attacks are set at an angle."""
NAMED_CELLS = 400
"""Larger heat maps are colour alone: their numbers are in the page."""
GREY = "#5b6470"


def curves(results: Results, summaries: Sequence[DefenseSummary], path: Path) -> bool:
    """Write robust accuracy against eps, one line per defense; False when there are no curves."""
    drawn = shown_defenses(summaries)
    lines = [(row, mean_curve(curve_of(item) for item in results.defenses if item.defense == row.defense)) for row in drawn]
    lines = [(row, points) for row, points in lines if points]
    if not lines:
        return False
    terms = terms_of(results)
    figure = _figure(7.2, max(4.4, 0.21 * len(lines) + 0.6))
    axes = figure.add_subplot()
    for index, (row, points) in enumerate(lines):
        eps = [point.eps for point in points]
        colour, marker = SERIES[index % len(SERIES)], MARKERS[index % len(MARKERS)]
        means, low, high = (
            [100 * share for share in shares]
            for shares in zip(*((p.robust_accuracy, p.ci_low, p.ci_high) for p in points), strict=True)
        )
        stretches = runs(joined(points, everywhere=terms.measured_everywhere))
        axes.plot([], [], label=_named(row, ", "), color=colour, marker=marker, markersize=4, linewidth=1.8)
        for part in (slice(*ends) for ends in stretches):
            if len(eps[part]) > 1:
                axes.plot(eps[part], means[part], color=colour, linewidth=1.8)
                axes.fill_between(eps[part], low[part], high[part], color=colour, alpha=0.14, lw=0)
            else:
                axes.vlines(eps[part], low[part], high[part], color=colour, linewidth=1.2)
                axes.plot(eps[part], means[part], color=colour, marker=marker, markersize=4)
    axes.axvline(results.threat.eps, color=GREY, linewidth=0.9, linestyle=(0, (2, 3)))
    axes.set(ylim=(-2, 102), xlabel=terms.axis, ylabel="worst-case robust accuracy (%)")
    axes.set_title(f"{_short(results.campaign, 40)}: accuracy against {terms.curve}", loc="left", fontsize=11, color=INK)
    axes.grid(axis="y", color="#e2e4e8", linewidth=0.8)
    axes.legend(frameon=False, fontsize=8.5, loc="upper left", bbox_to_anchor=(1.01, 1))
    _quiet(axes)
    _save(figure, path)
    return True


def shares(rows: Sequence[Measured], title: str) -> Figure:
    """Shares with their intervals below each other, with the clean accuracy as a tick; every row has a share."""
    figure = _figure(7, 0.9 + 0.34 * len(rows))
    axes = figure.add_subplot()
    for place, row in enumerate(rows):
        if row.low is not None and row.high is not None:
            axes.plot([100 * row.low, 100 * row.high], [place, place], color=SERIES[0], alpha=0.45, linewidth=3)
        if row.clean is not None:
            axes.plot([100 * row.clean], [place], marker="|", color=GREY, markersize=11, markeredgewidth=2)
        axes.plot([100 * (row.share or 0.0)], [place], marker="o", color=SERIES[0])
    axes.set_yticks(range(len(rows)), [_short(row.label, 32) for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(-1, 101)
    axes.set_xlabel("robust accuracy (%), 95 % interval; tick: clean", fontsize=8.5, color=INK)
    axes.set_title(_short(title, 110), fontsize=8.5, color=INK, loc="left", wrap=True)
    _quiet(axes)
    return figure


def heatmap(results: Results, summaries: Sequence[DefenseSummary], path: Path) -> bool:
    """Write defense x attack with its numbers; the last column is the worst case per sample. False when there are no attacks."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap

    rows, attacks = grid(results), attack_names(results)
    if not rows or not attacks:
        return False
    scale = LinearSegmentedColormap.from_list("heat", HEAT)
    named = len(rows) * len(attacks) <= NAMED_CELLS
    wide, high = (0.86, 0.46) if named else (0.16, 0.14)
    figure = _figure(2.6 + wide * (len(attacks) + 1), 1.3 + high * len(rows))
    axes = figure.add_subplot()
    if named:
        _cells(axes, rows, summaries)
    else:
        gap = 0.15
        lines = [
            [*(cell.value for cell in cells), None, row.robust_accuracy] for cells, row in zip(rows, summaries, strict=True)
        ]
        edges = [*range(len(attacks) + 1), len(attacks) + gap, len(attacks) + 1 + gap]
        mesh = np.array(lines, dtype=float)
        # One artist for all: a patch and a text for each of 10,000 cells take half a minute.
        axes.pcolormesh(edges, range(len(rows) + 1), np.ma.masked_invalid(mesh), cmap=scale, vmin=0, vmax=1)
    axes.set(xlim=(0, len(attacks) + 1.15), ylim=(len(rows), 0))
    axes.set_xticks(
        [x + 0.48 for x in range(len(attacks))] + [len(attacks) + 0.63],
        [*(_short(attack, 24) for attack in attacks), "worst case"],
    )
    axes.set_yticks([y + 0.48 for y in range(len(rows))], [_named(row, "\n" if named else ", ") for row in summaries])
    axes.xaxis.tick_top()
    if not named or max(map(len, attacks)) > WIDEST_UPRIGHT:
        for label in axes.get_xticklabels():
            label.set(rotation=30 if named else 90, ha="left" if named else "center", rotation_mode="anchor" if named else None)
    _quiet(axes)
    axes.tick_params(length=0)
    if not named:
        axes.tick_params(labelsize=6)
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = figure.colorbar(ScalarMappable(cmap=scale), ax=axes, fraction=0.04, pad=0.02, aspect=14, ticks=[0, 0.5, 1])
    bar.ax.set_yticklabels(["0", "50", "100"], fontsize=8, color=GREY)
    model = threat(results.threat_model)
    figure.suptitle(f"{_short(results.campaign, 40)}: robust accuracy under {model}", x=0.01, ha="left", fontsize=11, color=INK)
    bar.outline.set_visible(False)
    bar.set_label("robust accuracy (%)", fontsize=8, color=GREY)
    _save(figure, path)
    return True


def _cells(axes: Axes, rows: Sequence[Sequence[GridCell]], summaries: Sequence[DefenseSummary]) -> None:
    """Each cell with its number, or with why it has none."""
    from matplotlib.patches import Rectangle

    for y, (cells, row) in enumerate(zip(rows, summaries, strict=True)):
        values: list[tuple[float, float | None, str]] = [(x, cell.value, cell.status) for x, cell in enumerate(cells)]
        values.append((len(cells) + 0.15, row.robust_accuracy, row.status))
        for x, value, status in values:
            fill = "#f1f2f4" if value is None else heat(value)
            hatch = "////" if value is None else None
            axes.add_patch(Rectangle((x, y), 0.96, 0.94, facecolor=fill, edgecolor="#c9ced6", linewidth=0, hatch=hatch))
            text, colour, size = (status, INK, 7.5) if value is None else (f"{100 * value:.1f}", readable_on(fill), 8.5)
            axes.text(x + 0.48, y + 0.48, text, ha="center", va="center", color=colour, fontsize=size)


def analyses(results: Results, path: Path) -> bool:
    """Write the tables of the campaign's analyses, the first of many, one beside the other; False when there are none."""
    tables = shown_tables(results)[:MOST_TABLES]
    if not tables:
        return False
    columns = min(len(tables), 3)
    rows = -(-len(tables) // columns)
    deepest, widest = max(len(s.table.rows) for s in tables), max(len(s.table.columns) for s in tables)
    figure = _figure(columns * (1.7 + 0.8 * widest), rows * (1.1 + 0.46 * deepest))
    for place, shown in enumerate(tables, 1):
        axes = figure.add_subplot(rows, columns, place)
        (_bars if shown.table.parts else _heat_map)(axes, shown)
        axes.set_title(_short(f"{shown.defense}: {shown.analysis}", 40), fontsize=10, color=INK, loc="left")
        _quiet(axes)
        axes.tick_params(length=0, labelsize=7.5)
        for spine in axes.spines.values():
            spine.set_visible(False)
    _save(figure, path)
    return True


def _heat_map(axes: Axes, shown: ShownTable) -> None:
    """Each value in its cell."""
    from matplotlib.patches import Rectangle

    table = shown.table
    for y, line in enumerate(table.values):
        for x, value in enumerate(line):
            fill = shown.fill(value) or "#f1f2f4"
            axes.add_patch(Rectangle((x, y), 0.96, 0.94, facecolor=fill, linewidth=0))
            axes.text(x + 0.48, y + 0.48, shown.text(value), ha="center", va="center", fontsize=8, color=readable_on(fill))
    axes.set(xlim=(0, len(table.columns)), ylim=(len(table.rows), 0))
    axes.set_xticks([x + 0.48 for x in range(len(table.columns))], [_short(name) for name in table.columns])
    axes.set_yticks([y + 0.48 for y in range(len(table.rows))], [_short(name, 24) for name in table.rows])
    axes.xaxis.tick_top()


def _bars(axes: Axes, shown: ShownTable) -> None:
    """The first columns of each row as the parts of one bar, dark to light, and behind it the first of the others."""
    table = shown.table
    for y, line in enumerate(table.values):
        left = 0.0
        for number, part in enumerate(line[: table.parts]):
            fill = heat(number / max(1, table.parts - 1))
            axes.barh(y + 0.47, part, 0.8, left=left, color=fill, linewidth=0, label=table.columns[number] if y == 0 else None)
            if part > 0.08:
                axes.text(
                    left + part / 2,
                    y + 0.47,
                    f"{100 * part:.0f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color=readable_on(fill),
                )
            left += part
        said = ", ".join(
            f"{name} {shown.text(value)}"
            for name, value in list(zip(table.columns, line, strict=True))[table.parts : table.parts + 2]
        )
        axes.text(1.02, y + 0.47, said, ha="left", va="center", fontsize=7.5, color=INK)
    axes.set(xlim=(0, 1.9), ylim=(len(table.rows), 0))
    axes.set_xticks([0, 0.5, 1], ["0", "50", "100 %"])
    axes.set_yticks([y + 0.47 for y in range(len(table.rows))], [_short(name, 24) for name in table.rows])
    axes.legend(loc="upper center", bbox_to_anchor=(0.3, -0.12), ncols=min(table.parts, 4), fontsize=7, frameon=False)


def gallery(items: Sequence[Item], path: Path) -> bool:
    """Write clean, amplified perturbation and adversarial images, or what a model drew before and under attack, in columns.

    False when there are none.
    """
    shown = [
        (item, pictures) for item in selected(items, per_pair=2, at_most=2 * GALLERY_COLUMNS) if (pictures := _pictures(item))
    ]
    if not shown:
        return False
    bands = [shown[start : start + GALLERY_COLUMNS] for start in range(0, len(shown), GALLERY_COLUMNS)]
    rows = [name for name, _, _ in shown[0][1]]
    tall = 0.7 + 1.2 * len(rows)
    width, height = 0.45 + 1.1 * len(bands[0]), tall * len(bands) + 0.15
    figure = _figure(width, height, layout=None)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))  # one for all: an axes per picture costs seconds
    for top, band in enumerate(bands):
        for row, name in enumerate(rows):
            axes.text(0.28, tall * top + 1.25 + 1.2 * row, name, rotation=90, ha="center", va="center", fontsize=8, color=INK)
        for column, (item, pictures) in enumerate(band):
            _column(axes, item, pictures, 0.45 + 1.1 * column, tall * top)
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    _save(figure, path)
    return True


def _pictures(item: Item) -> list[tuple[str, np.ndarray, str]]:
    """What there is to see of a sample: what it is, the picture, and what is said of it."""
    if isinstance(item, GalleryItem):
        return [
            ("clean", item.clean, f"says {_short(item.before)}"),
            ("change", item.perturbation(), f"\N{MULTIPLICATION SIGN}{item.factor}"),
            ("adversarial", item.adversarial, f"says {_short(item.after)}"),
        ]
    if item.before is None or item.after is None:
        return []
    return [
        ("not attacked", item.before, ""),
        ("attacked", item.after, "broken" if item.broken else "not judged" if item.unjudged else "held"),
    ]


def _column(axes: Axes, item: Item, pictures: Sequence[tuple[str, np.ndarray, str]], left: float, top: float) -> None:
    """One sample: what it is, and its pictures."""
    label = f"truly {_short(item.label)}" if isinstance(item, GalleryItem) else _short(item.label)
    head = f"{_short(item.defense)}\n{_short(item.attack)}\n{label}"
    axes.text(left + 0.5, top + 0.68, head, ha="center", va="bottom", fontsize=7, color=INK, linespacing=1.35)
    for row, (_, image, text) in enumerate(pictures):
        picture, y = thumbnail(image), top + 0.75 + 1.2 * row
        high, wide = (side / max(picture.shape[:2]) for side in picture.shape[:2])
        axes.imshow(picture, extent=(left, left + wide, y + high, y), interpolation="nearest", aspect="equal")
        axes.text(left + 0.5, y + 1.02, text, ha="center", va="top", fontsize=7, color=GREY)


def _figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """A figure of its own: pyplot keeps every figure in a global list."""
    with large_import():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    figure.set_dpi(DPI)
    # What is laid out once stays so: ``savefig`` would do it twice.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    figure.savefig(path, dpi=DPI, format="png")


def _quiet(axes: Axes) -> None:
    axes.tick_params(colors=INK, labelsize=8.5, width=0.6)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#b8bec7")


def _named(row: DefenseSummary, joint: str) -> str:
    """A defense's name is never without its verdict where its worst case is shown."""
    return f"{_short(row.defense, 32)}{joint}{row.verdict or NO_VERDICT}"


def _short(text: object, width: int = 14) -> str:
    """Text that fits, with no character that matplotlib would read as mathematics."""
    plain = str(text).replace("$", r"\$")
    return plain if len(plain) <= width else plain[: width - 1] + "…"
