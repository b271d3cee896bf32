"""How a defense moved from one execution of its campaign to the next: one run per defense, one step per execution.

The executions are kept in a tag of that run, so that tracking the same one again finds its step again.
"""

from __future__ import annotations

import json
from dataclasses import astuple, dataclass
from datetime import datetime
from typing import Any

from robustkd.reporting import DefenseSummary, summary_rows
from robustkd.reporting.formatting import interval, percent
from robustkd.reporting.markdown import escape, verdict_mark
from robustkd.scoring.holds import ANSWERS, UNKNOWN, Standing
from robustkd.scoring.results import Results
from robustkd.tracking import descriptions
from robustkd.tracking.records import COLOURS, Point, RunRecord, package_version

TAG = "robustkd.history"
LONGEST = 40
"""Executions that are remembered; MLflow's charts keep the steps of older ones."""


@dataclass(frozen=True)
class Step:
    """One execution of a plan in a results folder: the means over the seeds, and the envelope of their intervals."""

    step: int
    plan: str
    at: str
    robust_accuracy: float
    ci_low: float | None
    ci_high: float | None
    clean_accuracy: float | None
    verdict: str | None
    results: str = ""

    @property
    def points(self) -> list[Point]:
        """The numbers of this execution as points of MLflow metrics."""
        named = {name: getattr(self, name) for name in ("robust_accuracy", "ci_low", "ci_high", "clean_accuracy")}
        return [Point(name, self.step, _short(value)) for name, value in named.items() if value is not None]

    @property
    def milliseconds(self) -> int:
        """The time of the execution in milliseconds since 1970."""
        return round(1000 * datetime.fromisoformat(self.at).timestamp())


def finished_at(results: Results) -> str:
    """When the last cell was finished, as the results say it."""
    return results.environment.finished or "1970-01-01T00:00:00+00:00"


def steps(results: Results, plan: str, folder: str, known: dict[str, str]) -> dict[str, list[Step]]:
    """The executions of each defense with a worst case, the present one included.

    Args:
        folder: the id of the results folder, if it has one.
        known: the runs' tags, by defense.
    """
    found = {}
    for row in summary_rows(results):
        if row.robust_accuracy is not None:
            found[row.defense] = _with(_read(known.get(row.defense, "")), row, plan, folder, finished_at(results))
    return found


def trend_record(defense: str, history: list[Step], standing: Standing = UNKNOWN) -> RunRecord:
    """The run of one defense's executions; its metrics are those of the last, after which it ``stands`` so."""
    last = history[-1]
    tags = {
        "robustkd.kind": "trend",
        "robustkd.defense": defense,
        "robustkd.version": package_version(),
        TAG: json.dumps([[*map(_short, astuple(step))] for step in history], separators=(",", ":")),
        "mlflow.note.content": _note(defense, history),
    }
    if last.verdict:
        tags["robustkd.verdict"] = last.verdict
    if standing != UNKNOWN:
        tags |= {"robustkd.holds": ANSWERS[standing.holds], "mlflow.runColor": COLOURS[standing.holds]}
    metrics = tuple(point for step in history for point in step.points)
    return RunRecord(f"{defense} · over time", "FINISHED", tags, {"defense": defense, "attack": "over time"}, metrics)


def _with(before: list[Step], row: DefenseSummary, plan: str, folder: str, at: str) -> list[Step]:
    places = {(step.plan, step.results): step.step for step in before}
    place = places.get((plan, folder), max(places.values(), default=0) + 1)
    assert row.robust_accuracy is not None
    now = Step(place, plan, at, row.robust_accuracy, row.ci_low, row.ci_high, row.clean_accuracy, row.verdict, folder)
    return sorted([*(step for step in before if step.step != place), now], key=lambda step: step.step)[-LONGEST:]


def _short(value: Any) -> Any:
    """A float with six digits: an MLflow tag holds 8,000 characters."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _read(tag: str) -> list[Step]:
    try:
        rows: list[list[Any]] = json.loads(tag)
        return [Step(*row) for row in rows]
    except (ValueError, TypeError):
        return []


def _note(defense: str, history: list[Step]) -> str:
    lines = []
    for before, step in zip([None, *history], history, strict=False):
        moved = "" if before is None else f"{100 * (step.robust_accuracy - before.robust_accuracy):+.1f}"
        share, ends = f"**{percent(step.robust_accuracy)}**", interval(step.ci_low, step.ci_high)
        lines.append([step.at[:16].replace("T", " "), step.plan[:8], share, ends, moved, verdict_mark(step.verdict)])
    head = ["finished", "plan", "robust", "95 % interval", "points", "verdict"]
    told = f"**{escape(defense)}**, its worst case in each execution of this campaign, the newest first."
    asked = "Whether a move is more than chance is said by `robustkd compare`, on the samples themselves."
    return descriptions.truncate("\n\n".join([told, descriptions.table(head, lines[::-1]), asked]))
