"""The first page: what is running, the leaderboards of all campaigns, and the campaigns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from robustkd.campaigns.execution.live import RunProgress
from robustkd.reporting import formatting
from robustkd.reporting.leaderboard import Board, Entry, boards
from robustkd.scoring.holds import ANSWERS
from robustkd.scoring.results import Results
from robustkd.viewer.addresses import Address
from robustkd.viewer.runs import Run
from robustkd.viewer.site import Site

_KEYS: dict[str, Callable[[Entry], object]] = {
    "rank": lambda entry: (entry.rank is None, entry.rank or 0, -(entry.robust_accuracy or 0.0)),
    "defense": lambda entry: entry.defense.casefold(),
    "campaign": lambda entry: entry.campaign.casefold(),
    "clean": lambda entry: -1.0 if entry.clean_accuracy is None else entry.clean_accuracy,
    "worst": lambda entry: -1.0 if entry.robust_accuracy is None else entry.robust_accuracy,
    "holds": lambda entry: ("yes", "in part", "no", None).index(entry.holds),
    "verdict": lambda entry: ("credible", "suspect", "not credible", None).index(entry.verdict),
}
COLUMNS = {
    "rank": "Rank",
    "defense": "Defense",
    "campaign": "Campaign",
    "clean": "Clean",
    "worst": "Worst case",
    "holds": "Holds",
    "verdict": "Verdict",
}
FALLING = ("clean", "worst")
"""Columns that begin with the highest."""


@dataclass(frozen=True)
class Row:
    """A defense in a leaderboard, and the key of its campaign."""

    entry: Entry
    key: str


@dataclass(frozen=True)
class ShownBoard:
    """A leaderboard as far as it is searched for; ``threat`` is its threat model as pages have it."""

    board: Board
    threat: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Listed:
    """A campaign in the list; ``state`` says how far it is."""

    run: Run
    title: str
    state: str
    finished: str
    defenses: int
    progress: RunProgress | None


def leaderboard_page(site: Site, wanted: Address) -> str:
    """The leaderboards, searched by ``q``, sorted by ``sort`` and ``order``."""
    runs = site.runs.all()
    found = {run.folder: results for run in runs if (results := run.results)}
    asked = wanted.get("q").casefold().split()
    sort = wanted.get("sort") if wanted.get("sort") in _KEYS else "rank"
    falling = (wanted.get("order") or ("desc" if sort in FALLING else "asc")) == "desc"
    shown = [
        ShownBoard(board, _threat(board, found), tuple(_sorted(_matching(board, asked), sort, falling)))
        for board in boards(found)
    ]
    titles = site.runs.titles()
    return site.render(
        "leaderboard.html.j2",
        wanted,
        boards=[board for board in shown if board.rows],
        hidden=sum(not board.rows for board in shown),
        columns=COLUMNS,
        sort=sort,
        falling=falling,
        listed=[_listed(run, titles[run.key]) for run in runs],
        folder=site.runs.folder,
        falling_columns=FALLING,
        several=len(runs) > 1,
    )


def _threat(board: Board, found: Mapping[Path, Results]) -> str:
    """The threat model that the campaigns of a leaderboard share."""
    return formatting.threat(found[Path(board.entries[0].folder)].threat_model) if board.entries else board.threat


def _matching(board: Board, asked: Sequence[str]) -> list[Row]:
    def told(entry: Entry) -> str:
        attacks = " ".join(entry.attacks)
        return f"{entry.defense} {entry.campaign} {entry.folder} {entry.verdict} {ANSWERS[entry.holds]} {attacks} {board.title}".casefold()

    return [Row(entry, Path(entry.folder).name) for entry in board.entries if all(word in told(entry) for word in asked)]


def _sorted(rows: Sequence[Row], sort: str, falling: bool) -> list[Row]:
    return sorted(rows, key=lambda row: _KEYS[sort](row.entry), reverse=falling)  # type: ignore[arg-type,return-value]


def _listed(run: Run, title: str) -> Listed:
    results, progress = run.results, run.progress
    missing = sum(cell.status != "done" for cell in results.cells) if results else 0
    if progress:
        state = "running" if progress.alive else "stopped"
        state += f", {progress.done} of {progress.total} cells done"
    elif run.problem:
        state = run.problem
    elif results is None:
        state = "not finished: it holds no results yet"
    else:
        state = f"{missing} of {len(results.cells)} attacks without a number" if missing else "finished"
    finished = (results.environment.finished or "") if results else ""
    names = {item.defense for item in results.defenses} if results else {key[1] for key in run.planned}
    return Listed(run, title, state, finished, len(names), progress)
