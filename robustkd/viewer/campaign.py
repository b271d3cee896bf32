"""The page of one campaign: live while it runs, then its table of defenses and attacks, checks, gates, cells and failures."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from robustkd.campaigns.execution.live import RunningCell
from robustkd.campaigns.store import samples
from robustkd.contracts import StoreError
from robustkd.redaction import redacted
from robustkd.reporting import formatting
from robustkd.reporting.grid import grid
from robustkd.reporting.page import OPEN_ROWS, shown_cells
from robustkd.reporting.plots import Plot, Series, plot
from robustkd.reporting.presentation import terms_of
from robustkd.reporting.set_up import attack_rows, defense_rows, last_run
from robustkd.reporting.summary import DefenseSummary, attack_names, seeds_of, summary_rows
from robustkd.reporting.verdict_text import CheckRow, VerdictText, answer, check_rows, explain
from robustkd.scoring.results import Results
from robustkd.scoring.unfinished import is_headline
from robustkd.tracking.dashboard import page_url
from robustkd.tracking.location import default_store
from robustkd.viewer.addresses import Address
from robustkd.viewer.runs import REPORT, Run
from robustkd.viewer.site import Site

DASHBOARD = "http://127.0.0.1:5000"
"""Where ``robustkd ui`` serves MLflow's pages, unless it is told another port."""
MOST_CELLS = 300
MOST_PLOTS = 6
UNDRAWN = ("epoch", "step", "seconds", "lr")
MOST_READ = 200
"""Cells of a running campaign that one page reads for their numbers; the page is renewed, and the next one reads on."""


@dataclass(frozen=True)
class LiveCell:
    """A cell that is running: for how long (seconds), its latest numbers, and how they went."""

    title: str
    seconds: float
    numbers: dict[str, str]
    plots: tuple[Plot, ...]


@dataclass(frozen=True)
class LiveValue:
    """A field of the table while a campaign runs: the mean over the seeds that are done, None before their cells are read.

    ``status`` says why there is none: it is to be done, done but not read, or it failed.
    """

    value: float | None
    done: int
    of: int
    status: str


@dataclass(frozen=True)
class DefenseSection:
    """One defense: its numbers, what is to be said of them, and its checks."""

    row: DefenseSummary
    story: VerdictText
    checks: tuple[CheckRow, ...]


def campaign_page(site: Site, wanted: Address) -> str:
    """The page of the campaign ``run``."""
    run = site.run(wanted)
    progress, results = run.progress, run.results
    title = site.runs.titles()[run.key]
    shared = {
        "run": run,
        "title": title,
        "progress": progress,
        "alive": progress is not None and progress.alive,
        "live_cells": [_live_cell(cell) for cell in progress.running.values()] if progress else [],
        "now": time.time(),
        "report": run.file(REPORT) is not None and not site.exported,
        "tracked": "" if site.exported else _mlflow(run),
        "gates": run.gates,
    }
    if progress or results is None:
        return site.render("running.html.j2", wanted, **shared, **_live_matrix(site, run))
    return site.render("campaign.html.j2", wanted, **shared, **_finished(results), **_set_up(run, results))


def _mlflow(run: Run) -> str:
    """The page of the campaign in MLflow's dashboard, as ``robustkd ui`` serves it; "" where it was not tracked to a store here."""
    database = default_store(run.folder)
    return page_url(run.folder, DASHBOARD) if database is not None and database.is_file() else ""


def _finished(results: Results) -> dict[str, object]:
    summaries = summary_rows(results)
    trained = {row.defense: [item for item in results.defenses if item.defense == row.defense] for row in summaries}
    failed = [cell for cell in results.cells if cell.status != "done"]
    others = {cell.attack: formatting.threat(cell.threat_model) for cell in results.cells if not is_headline(results, cell)}
    return {
        "results": results,
        "terms": terms_of(results),
        "answer": answer(results, summaries),
        "sections": [DefenseSection(row, explain(results, row), tuple(check_rows(trained[row.defense]))) for row in summaries],
        "attacks": attack_names(results),
        "grid": grid(results),
        "other_threats": others,
        "seeds": seeds_of(results),
        "failed": failed[:MOST_CELLS],
        "failed_in_all": len(failed),
        "lost": [item for item in results.defenses if item.error],
        "cells": shown_cells(results)[:MOST_CELLS],
        "open_rows": OPEN_ROWS,
    }


def _set_up(run: Run, results: Results) -> dict[str, object]:
    """What was run: attacks and defenses with their parameters, the campaign file, and where it was run."""
    document = run.document
    last = next((execution for execution in reversed(run.executions) if execution.finished), None)
    blocks = document.defenses if document else {}
    return {
        "attack_rows": attack_rows(results),
        "defense_rows": defense_rows({name: {"kind": block.kind, **block.params} for name, block in blocks.items()}),
        "campaign_file": redacted(run.text),
        "last_run": last_run(last.command, last.git, last.finished or "", last.packages) if last else None,
    }


def _live_matrix(site: Site, run: Run) -> dict[str, object]:
    """The defenses, the attacks, and of each pair what is known so far."""
    places = run.attacks()
    attacks = list(dict.fromkeys(place.attack for place in places))
    found: dict[tuple[str, str], list[tuple[float | None, bool]]] = {}
    left = [MOST_READ]
    progress = run.progress
    failed = {cell.cell_id: cell.status for cell in progress.failed} if progress else {}
    lost: dict[tuple[str, str], str] = {}
    for place in places:
        if place.cell_id in failed:
            lost[place.defense, place.attack] = failed[place.cell_id]
        found.setdefault((place.defense, place.attack), []).append(
            (_number(site, run, place.cell_id, left), run.has(place.cell_id))
        )
    rows = []
    for defense in dict.fromkeys(place.defense for place in places):
        values = []
        for attack in attacks:
            seeds = found.get((defense, attack), [])
            known = [value for value, _ in seeds if value is not None]
            done = sum(there for _, there in seeds)
            status = lost.get((defense, attack)) or ("done" if done else "to do" if seeds else "")
            values.append(LiveValue(sum(known) / len(known) if known else None, done, len(seeds), status))
        rows.append((defense, values))
    return {
        "attacks": attacks,
        "rows": rows,
        "first_seed": {place.defense: place.seed for place in reversed(places)},
        "cells_there": sum(run.has(cell_id) for cell_id in run.planned.values()),
        "cells_planned": len(set(run.planned.values())),
    }


def _number(site: Site, run: Run, cell_id: str, left: list[int]) -> float | None:
    """The robust accuracy that an attack left; None while it is not finished, or not read yet."""
    if not run.has(cell_id):
        return None
    key = (run.folder, cell_id, run.store.path(cell_id).stat().st_mtime_ns)
    if key not in site.numbers and not left[0]:
        return None

    def read() -> float | None:
        left[0] -= 1
        try:
            return float(samples.read(entry).outcome.robust_share.mean()) if (entry := run.entry(cell_id)) else None
        except StoreError:
            return None

    return site.numbers.get(key, read)


def _label(name: str) -> str:
    """What a number of a training is called on a page."""
    return {"lr": "learning rate", "seconds": "time of the epoch"}.get(name, name.replace("_", " "))


def _shown(name: str, value: float | None) -> str:
    """A number of a training as its name says: a share, a time, or a number."""
    if name == "seconds" and value is not None:
        return formatting.seconds(value)
    return formatting.percent(value) if name.endswith("accuracy") else formatting.number(value)


def _live_cell(cell: RunningCell) -> LiveCell:
    last = cell.history[-1] if cell.history else {}
    numbers = {_label(name): _shown(name, value) for name, value in last.items() if name != "epoch"}
    if "epoch" in last:
        numbers = {"epoch": f"{int(last['epoch'] or 0) + 1}", **numbers}
    names = dict.fromkeys(name for entry in cell.history for name in entry if name not in UNDRAWN)
    plots = []
    for name in list(names)[:MOST_PLOTS]:
        points = [(entry.get("epoch") or 0.0, value) for entry in cell.history if (value := entry.get(name)) is not None]
        points = [(x, y) for x, y in points if math.isfinite(y)]
        if len(points) > 1:
            series = Series(name.replace("_", " "), [x + 1 for x, _ in points], [y for _, y in points])
            drawn = plot(name.replace("_", " "), [series], "epoch", shares=False, n_ticks=4)
            plots += [drawn] if drawn else []
    return LiveCell(cell.title, max(0.0, time.time() - cell.since), numbers, tuple(plots))
