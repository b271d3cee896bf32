"""``robustkd compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from robustkd.cli.names import outputs
from robustkd.cli.options import console, json_option, print_reserved, tell

if TYPE_CHECKING:
    from robustkd.campaigns.comparison.compare import Change, ComparedCampaigns, Movement

_COLOURS = {"better": "green", "worse": "red"}


@click.command("compare")
@click.argument("a", shell_complete=outputs)
@click.argument("b", shell_complete=outputs)
@click.option("--match", "matches", multiple=True, metavar="A=B", help="Compare defense A of the first with B of the second.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw the differences into this PNG file.")
@json_option
def command(a: str, b: str, matches: tuple[str, ...], plot: Path | None, as_json: bool) -> None:
    """What changed from campaign A to B, tested on the samples that both were attacked on.

    A and B: campaigns (files or presets, run into runs/NAME), output folders, results.json or baseline files.
    """
    from robustkd.campaigns.comparison import snapshot
    from robustkd.campaigns.comparison.compare import compare

    compared = compare(snapshot.read(a), snapshot.read(b), _matched(matches))
    if plot is not None:
        _draw(compared, plot)
    if as_json:
        print_reserved(compared.to_json())
    else:
        _print(compared, plot)


def _matched(matches: tuple[str, ...]) -> dict[str, str] | None:
    pairs = [match.partition("=") for match in matches]
    if any(not (a and b) for a, _, b in pairs):
        raise click.UsageError("--match takes two names: --match NAME_IN_A=NAME_IN_B")
    return {a: b for a, _, b in pairs} or None


def _print(compared: ComparedCampaigns, plot: Path | None) -> None:
    from rich.table import Table
    from rich.text import Text

    from robustkd.reporting.pairwise import methods_sentence

    table = Table(
        title=f"A  {compared.a}\nB  {compared.b}",
        caption="B - A in percentage points, with its 95 % interval; only A, only B: samples that hold on that side alone; "
        "better and worse are said of these networks, by the p that is adjusted for all rows (Holm)",
        title_justify="left",
        caption_justify="left",
        box=None,
        pad_edge=False,
    )
    for name in ("defense", "attack", "seed", "A", "B", "B - A", "only A", "only B", "p", "adjusted p", ""):
        left = name in ("defense", "attack", "")
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    shown: set[str] = set()
    for item in compared.movements:
        for place, change in enumerate(item.changes):
            first = "" if item.defense in shown else title(item)
            shown.add(item.defense)
            what = item.attack if place == 0 else ""
            told = Text(change.direction, style=_COLOURS.get(change.direction, ""))
            table.add_row(first, what, str(change.seed), *_numbers(change), told)
    console().print(table)
    for item in compared.movements:
        if item.attack == "worst case" and len(item.changes) > 1:
            low, high = (100 * end for end in item.interval)
            seeds = f"over {len(item.changes)} seeds, each tested alone"
            mean = f"mean {100 * item.difference:+.1f} points, intervals from {low:+.1f} to {high:+.1f}"
            tell(f"{title(item)}: {item.direction} in the worst case {seeds}: {mean}")
            if item.methods:
                tell(methods_sentence(f"{item.defense_b} in B", f"{item.defense} in A", item.methods))
    for note in compared.notes:
        tell(note)
    if plot is not None:
        click.echo(f"plot       {plot}")


def _numbers(change: Change) -> list[str]:
    from robustkd.reporting.pairwise import probability

    points = f"{100 * change.difference:+.1f} [{100 * change.ci_low:+.1f}, {100 * change.ci_high:+.1f}]"
    alone = (
        ["-", "-", "not paired"] if change.p is None else [f"{change.only_a:g}", f"{change.only_b:g}", probability(change.p)]
    )
    return [f"{change.a:.1%}", f"{change.b:.1%}", points, *alone, probability(change.p_adjusted)]


def title(item: Movement) -> str:
    """The defense's name, or its two names."""
    return item.defense if item.defense == item.defense_b else f"{item.defense} = {item.defense_b}"


def _draw(compared: ComparedCampaigns, path: Path) -> None:
    from robustkd.reporting.forest import ForestRow, forest

    rows = []
    for item in compared.movements:
        for change in item.changes:
            label = f"{item.attack}, seed {change.seed}" + ("" if change.paired else " (not paired)")
            ends = 100 * change.difference, 100 * change.ci_low, 100 * change.ci_high
            rows.append(ForestRow(title(item), label, *ends, direction=change.direction))
    forest(rows, f"{compared.a} → {compared.b}", "B - A, percentage points (95 % intervals)", path)
