"""``robustkd compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from robustkd.cli.names import outputs
from robustkd.cli.options import console, json_option, print_reserved, tell

if TYPE_CHECKING:
    from robustkd.campaigns.comparison.compare import Change, ComparedCampaigns, Movement
    from robustkd.cli.columns import Column

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
    for side, name in (("A", compared.a), ("B", compared.b)):
        click.echo(f"{side}  {name}")
    if any(item.changes for item in compared.movements):
        _print_movements(compared)
    for note in compared.notes:
        tell(note)
    if plot is not None:
        click.echo(f"plot       {plot}")


def _print_movements(compared: ComparedCampaigns) -> None:
    from robustkd.cli.columns import print_parts
    from robustkd.reporting.pairwise import methods_sentence

    seeds = sorted({change.seed for item in compared.movements for change in item.changes})
    several = len(seeds) > 1
    click.echo()
    print_parts(_columns(compared, with_seeds=several), console(), names=3 if several else 2)
    tell(
        ("" if several else f"seed {seeds[0]}; ")
        + "B - A in percentage points, with its 95 % interval; only A, only B: samples that hold on that side alone; better and worse "
        "are said of these networks, by the p that is adjusted for all rows (Holm)"
    )
    for item in compared.movements:
        if item.attack == "worst case" and len(item.changes) > 1:
            low, high = (100 * end for end in item.interval)
            over = f"over {len(item.changes)} seeds, each tested alone"
            mean = f"mean {100 * item.difference:+.1f} points, intervals from {low:+.1f} to {high:+.1f}"
            tell(f"{title(item)}: {item.direction} in the worst case {over}: {mean}")
            if item.methods:
                tell(methods_sentence(f"{item.defense_b} in B", f"{item.defense} in A", item.methods))


def _columns(compared: ComparedCampaigns, *, with_seeds: bool) -> list[Column]:
    """A row for each defense, attack and seed; a name is not repeated from row to row."""
    from rich.text import Text

    from robustkd.cli.columns import Column

    defenses, attacks, seeds = list[str](), list[str](), list[str]()
    numbers, told = [], []
    shown: set[str] = set()
    for item in compared.movements:
        for place, change in enumerate(item.changes):
            defenses.append("" if item.defense in shown else title(item))
            shown.add(item.defense)
            attacks.append(item.attack if place == 0 else "")
            seeds.append(str(change.seed))
            numbers.append(_numbers(change))
            told.append(Text(change.direction, style=_COLOURS.get(change.direction, "")))
    names = [Column("defense", defenses, "left"), Column("attack", attacks, "left")]
    if with_seeds:
        names.append(Column("seed", seeds))
    a, b, difference, *tests = map(list, zip(*numbers, strict=True))
    main = [Column("A", a), Column("B", b), Column("B - A", difference)]
    details = [
        Column(name, cells, detail=True) for name, cells in zip(("only A", "only B", "p", "adjusted p"), tests, strict=True)
    ]
    return [*names, *main, *details, Column("", told, "left")]


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
