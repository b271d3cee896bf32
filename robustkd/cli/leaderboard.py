"""``robustkd leaderboard``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from robustkd.cli.names import outputs
from robustkd.cli.options import console, json_option, print_reserved, whole_words

if TYPE_CHECKING:
    from robustkd.reporting.leaderboard import Board, Entry

_COLUMNS = ("rank", "defense", "campaign", "clean", "worst case", "holds", "verdict", "seeds", "attacks")
_IF_WIDE = ("holds", "seeds", "attacks")
_WIDE = 110
"""Columns from which on the attacks have room beside the rest."""
_COLOURS = {"credible": "", "no verdict": "", "suspect": "yellow", "not credible": "red"}


@click.command("leaderboard")
@click.argument("folders", nargs=-1, metavar="[RUNS...]", shell_complete=outputs)
@click.option("--markdown", is_flag=True, help="Print Markdown tables.")
@json_option
def command(folders: tuple[str, ...], markdown: bool, as_json: bool) -> None:
    """Rank the defenses of campaigns that were run: one table for each data and threat model, which alone can be compared.

    RUNS: a campaign's output folder, its name below `runs`, a campaign (file or preset), or a folder that holds several
    [default: the folder runs]. A number that must not be believed has no rank.
    """
    from robustkd.application.campaign import folder_of
    from robustkd.reporting.leaderboard import boards, results_in

    made = boards(results_in(map(folder_of, folders or ("runs",))))
    if as_json:
        print_reserved(json.dumps([_as_json(board) for board in made], indent=1))
        return
    for board in made:
        (_print_markdown if markdown else _print)(board)


def _as_json(board: Board) -> dict[str, Any]:
    return asdict(board) | {"same_attacks": board.same_attacks, "other_settings": board.other_settings}


def _cells(entry: Entry) -> tuple[str, ...]:
    from robustkd.scoring.holds import ANSWERS

    clean = "-" if entry.clean_accuracy is None else f"{entry.clean_accuracy:.1%}"
    worst = "-"
    if entry.robust_accuracy is not None and entry.ci_low is not None and entry.ci_high is not None:
        worst = f"{entry.robust_accuracy:.1%} [{entry.ci_low:.1%}, {entry.ci_high:.1%}]"
    rank = "-" if entry.rank is None else str(entry.rank)
    verdict = entry.verdict or ("no verdict" if entry.status == "done" else entry.status)
    seeds = str(len(entry.seeds))
    holds = ANSWERS[entry.holds]
    return rank, entry.defense, entry.campaign, clean, worst, holds, verdict, seeds, ", ".join(entry.attacks)


def _print(board: Board) -> None:
    from rich.table import Table
    from rich.text import Text

    from robustkd.reporting.formatting import counted
    from robustkd.reporting.verdict_text import names_that_hold

    screen = console()
    narrow = screen.width < _WIDE
    table = Table(title=board.title, title_justify="left", box=None, pad_edge=False)
    for name in (name for name in _COLUMNS if not narrow or name not in _IF_WIDE):
        right = name in ("rank", "clean", "worst case", "seeds")
        folds = name == "attacks" or (narrow and name in ("defense", "campaign"))
        table.add_column(
            name, justify="right" if right else "left", no_wrap=not folds, overflow="fold" if folds else "ellipsis"
        )
    for entry in board.entries:
        cells: dict[str, str | Text] = dict(zip(_COLUMNS, _cells(entry), strict=True))
        told = str(cells["verdict"])
        cells["verdict"] = Text(told, style=_COLOURS.get(told, "red"))
        table.add_row(*(text for name, text in cells.items() if not narrow or name not in _IF_WIDE))
    screen.print(table)
    if narrow:  # the attacks would take all the width, and are the same for a whole campaign
        for (campaign, names), entries in _alike(board).items():
            seeds = counted(max(len(entry.seeds) for entry in entries), "seed")
            click.echo(whole_words(f"{campaign}, {seeds}: {', '.join(names)}", hanging="  "))
        told = names_that_hold((_named(entry, board), entry.holds) for entry in board.entries)
        click.echo(whole_words(f"does it hold? {told}", hanging="  "))
    if remark := board.remark:
        click.echo(whole_words(remark))
    click.echo("")


def _named(entry: Entry, board: Board) -> str:
    """With the campaign where the board has several."""
    one = len({other.campaign for other in board.entries}) == 1
    name = entry.defense if one else f"{entry.defense} of {entry.campaign}"
    return f"{name} (undefended)" if entry.undefended else name


def _alike(board: Board) -> dict[tuple[str, tuple[str, ...]], list[Entry]]:
    """The entries of a board by campaign and attacks."""
    found: dict[tuple[str, tuple[str, ...]], list[Entry]] = {}
    for entry in board.entries:
        found.setdefault((entry.campaign, entry.attacks), []).append(entry)
    return found


def _print_markdown(board: Board) -> None:
    lines = [f"### {board.title}", "", f"| {' | '.join(_COLUMNS)} |", "|" + "---|" * len(_COLUMNS)]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in _cells(entry))} |" for entry in board.entries]
    click.echo("\n".join([*lines, *(["", remark] if (remark := board.remark) else [])]) + "\n")
