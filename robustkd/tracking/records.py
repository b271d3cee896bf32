"""Results -> what an MLflow run of them holds. Pure functions; MLflow is not needed here."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, NamedTuple
from urllib.parse import urlencode

from robustkd.contracts import Budget
from robustkd.contracts.check import Verdict
from robustkd.redaction import redacted, redacted_value
from robustkd.reporting import Item
from robustkd.reporting.gallery import requests_of
from robustkd.reporting.summary import DefenseSummary, summary_rows
from robustkd.scoring.bracket import Bracket
from robustkd.scoring.holds import ANSWERS, UNKNOWN, Holds, Standing
from robustkd.scoring.intervals import count_of, wilson
from robustkd.scoring.results import CellResult, CurvePoint, DefenseResult, Results
from robustkd.scoring.summaries import DataSummary
from robustkd.scoring.tradeoff import nrr, w_robust
from robustkd.tracking import descriptions

MAX_PARAM = 6000
"""MLflow cuts longer ones silently."""

VIEWER = "http://127.0.0.1:8350"
"""Where ``robustkd view`` serves its pages, unless it is told another port."""
WORST_CASE = "worst case"
"""What stands in the place of an attack's name on a defense's run."""

COLOURS: dict[Holds | None, str] = {"yes": "#009e73", "in part": "#e69f00", "no": "#d55e00", None: "#5b6470"}
"""Of a run, by whether the defense holds."""
CELL_METRICS = (
    "clean_accuracy", "robust_accuracy", "ci_low", "ci_high", "attack_success_rate", "median_norm",
    "forward_passes", "backward_passes", "wall_seconds", "n",
)  # fmt: skip
DEFENSE_METRICS = ("clean_accuracy", "robust_accuracy", "ci_low", "ci_high", "train_seconds", "n")


@dataclass(frozen=True)
class TrackedCampaign:
    """What tracking has to know of a campaign beside its results.

    Attributes:
        plan_id: the same for the same plan; another one starts another parent run.
        text: the resolved campaign file.
        defenses, attacks: kind and parameters by name, nested as they are.
        series: whose runs these are, on a store that several write to; None: as the results folder has it.
        key: the name of the results folder, by which ``robustkd view`` calls the campaign; "" where it is not known.
    """

    name: str
    plan_id: str
    text: str
    data: DataSummary
    defenses: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    attacks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    series: str | None = None
    key: str = ""


class RunKey(NamedTuple):
    """Which child run of a plan's parent; ``attack`` is empty for a defense's worst case."""

    defense: str
    attack: str
    seed: int


class Point(NamedTuple):
    """One value of a metric, at a step."""

    metric: str
    step: int
    value: float


@dataclass(frozen=True)
class RunRecord:
    """The whole content of one run.

    Attributes:
        seconds: what MLflow shows as the run's duration.
        files: small texts to keep as artefacts, by path.
        attached: the other artefacts, in any words that change when they change.
    """

    name: str
    status: Literal["FINISHED", "FAILED"]
    tags: dict[str, str]
    params: dict[str, str] = field(default_factory=dict)
    metrics: tuple[Point, ...] = ()
    seconds: float = 0.0
    files: dict[str, str] = field(default_factory=dict)
    attached: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Hashes of the artefacts, of parameters and metrics, and of it all: a finished run that has it need not be written again."""
        parts = (self.files, self.attached), (self.params, self.metrics), asdict(self)
        return "-".join(_sha256(part)[:16] for part in parts)


def measured(digest: str) -> str:
    """The part of a record's digest that is of its parameters and metrics; empty of the digests of former versions."""
    parts = digest.split("-")
    return parts[1] if len(parts) == 3 else ""


def cell_record(
    campaign: TrackedCampaign,
    cell: CellResult,
    verdict: Verdict | None = None,
    *,
    standing: Standing = UNKNOWN,
    images: bool = False,
    examples: Sequence[Item] = (),
) -> RunRecord:
    """The run of one attack on one defense; ``verdict`` is that on the defense, once it is known.

    Args:
        standing: whether the defense holds, once it is known.
        images: whether there is something to look at among its artefacts.
        examples: attacked requests, the first of which its note quotes.
    """
    quoted = requests_of(examples)
    params, files = _params(campaign, cell, cell.attack)
    tags = _tags(campaign, cell, "cell", cell.cell_id, verdict, standing) | {
        "mlflow.note.content": _with_link(descriptions.cell(cell, verdict, quoted), campaign, cell)
    }
    return RunRecord(
        name=f"{cell.defense} × {cell.attack} · seed {cell.seed}",
        status="FINISHED" if cell.status == "done" else "FAILED",
        tags=tags,
        params=params,
        metrics=tuple(_points(cell, CELL_METRICS)) if cell.status == "done" else (),
        seconds=cell.wall_seconds,
        files=files,
        attached=(f"images of {cell.cell_id}",) if images else (),
    )


def defense_record(
    campaign: TrackedCampaign, result: DefenseResult, *, standing: Standing = UNKNOWN, model: bool = False
) -> RunRecord:
    """The run of one trained defense: its worst case over the attacks, its verdict and its training."""
    params, files = _params(campaign, result, WORST_CASE)
    tags = _tags(campaign, result, "defense", f"{result.defense}/{result.seed}", result.verdict, standing)
    if result.target_hash:
        tags["robustkd.target_hash"] = result.target_hash
    return RunRecord(
        name=defense_name(result.defense, result.seed),
        status="FINISHED" if result.status == "done" else "FAILED",
        tags=tags | {"mlflow.note.content": _with_link(descriptions.defense(result), campaign, result)},
        params=params,
        metrics=(
            *_points(result, DEFENSE_METRICS),
            *_remedied(result),
            *_check_passes(result),
            *_tradeoff(result),
            *_bracket(result.bracket),
            *_analysed(result),
            *_trained(result.history),
        ),
        seconds=result.train_seconds,
        files=files,
        attached=("model",) if model else (),
    )


def training_record(campaign: TrackedCampaign, defense: str, seed: int) -> RunRecord:
    """The run of a defense whose training has begun: no more than its name."""
    tags = {"robustkd.kind": "defense", "robustkd.plan_id": campaign.plan_id, "robustkd.status": "training"}
    tags |= {"robustkd.defense": defense, "robustkd.attack": WORST_CASE, "robustkd.seed": str(seed)}
    return RunRecord(defense_name(defense, seed), "FINISHED", tags)


def campaign_record(campaign: TrackedCampaign, results: Results, attached: Iterable[str] = ()) -> RunRecord:
    """The parent run of a plan: totals over its cells, and the campaign file."""
    done = [cell for cell in results.cells if cell.status == "done"]
    totals = {
        "cells": len(results.cells),
        "cells_failed": len(results.cells) - len(done),
        "cells_skipped": len(results.skipped),
        "defenses": len(results.defenses),
        "forward_passes": sum(cell.forward_passes for cell in done),
        "backward_passes": sum(cell.backward_passes for cell in done),
        "wall_seconds": sum(cell.wall_seconds for cell in done) + sum(item.train_seconds for item in results.defenses),
        "n": results.data.n,
    }
    best = _best(results)
    tags = (
        {}
        if best is None
        else {"robustkd.best": best.defense, "robustkd.holds": ANSWERS[best.holds]}
        | ({"robustkd.verdict": best.verdict} if best.verdict else {})
    )
    params = {"data": results.data.name, "norm": results.threat.norm, "eps": results.threat.eps}
    params |= _region(results.threat_model.budget)
    params |= _in_data_unit(results.data, results.threat.norm, results.threat.eps)
    return RunRecord(
        name=campaign_name(campaign),
        status="FAILED" if results.incomplete else "FINISHED",
        tags={
            "robustkd.kind": "campaign",
            "robustkd.plan_id": campaign.plan_id,
            "robustkd.status": "incomplete" if results.incomplete else "done",
            "robustkd.version": package_version(),
            "mlflow.note.content": _with_link(descriptions.campaign(results), campaign),
            **tags,
        },
        params={key: _text(value) for key, value in params.items()},
        metrics=(
            *(point for key, value in totals.items() for point in course(key, 0.0, value)),
            *_accuracies(best, of_images=results.budget.of_images),
        ),
        files={"campaign.yaml": redacted(campaign.text), "cells.json": table(results)},
        attached=tuple(attached),
    )


def campaign_name(campaign: TrackedCampaign) -> str:
    """The name of a plan's parent run."""
    return f"{campaign.name} · campaign {campaign.plan_id[:8]}"


def defense_name(defense: str, seed: int) -> str:
    """The name of a defense's run."""
    return f"{defense} · worst case · seed {seed}"


def table(results: Results) -> str:
    """Every cell as one JSON table, in the form that MLflow's artefact page shows as one."""
    verdicts = {(item.defense, item.seed): item.verdict for item in results.defenses}
    head = ("defense", "attack", "seed", "status", "verdict", "norm", "eps", *CELL_METRICS, "error")
    items: list[CellResult | DefenseResult] = [*results.defenses, *results.cells]
    rows = []
    for item in items:
        known = {"attack": WORST_CASE, "wall_seconds": None} | vars(item) | {"verdict": verdicts.get((item.defense, item.seed))}
        rows.append([_plain(known.get(name)) for name in head])
    return json.dumps({"columns": head, "data": rows}, allow_nan=False)


def history_points(history: Iterable[Mapping[str, float]]) -> list[Point]:
    """A training's history; its step is the epoch."""
    return [
        Point(_legal(name), int(entry.get("epoch", position)), _rounded(value))
        for position, entry in enumerate(history)
        for name, value in entry.items()
        if name != "epoch" and math.isfinite(value)
    ]


def _trained(history: Sequence[Mapping[str, float]]) -> list[Point]:
    """A finished training's history; that of a single epoch at step 1, for the reason that ``course`` gives."""
    points = history_points(history)
    return points if any(point.step for point in points) else [point._replace(step=1) for point in points]


def flattened(values: Mapping[str, Any], prefix: str) -> dict[str, str]:
    """Nested parameters as ``prefix.outer.inner``: text; what is None is left out."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        key = f"{prefix}.{_legal(str(name))}"
        if isinstance(value, Mapping):
            flat |= flattened(value, key)
        elif value is not None:
            flat[key] = redacted_value(key, _text(value))
    return flat


@cache
def package_version() -> str:
    """The installed version of robustkd; `unknown` where it is not installed."""
    try:
        return version("robustkd")
    except PackageNotFoundError:
        return "unknown"


def _sha256(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _legal(name: str) -> str:
    """A name of a metric or a parameter as MLflow takes it."""
    return re.sub(r"[^a-zA-Z0-9_\-. :/]", "_", name)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return redacted(value) if isinstance(value, str) else value


def _rounded(value: float) -> float:
    """Six digits fit a column of MLflow's tables; results.json has them all. Counts stay exact."""
    return float(value) if float(value).is_integer() else float(f"{value:.6g}")


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return redacted(value if isinstance(value, str) else json.dumps(value, default=str))


def _region(budget: Budget) -> dict[str, str]:
    """Where pixels may change, without which norm and eps would be another threat model; empty where they may everywhere."""
    return {} if budget.region is None else {"where": str(budget.region)}


def _in_data_unit(data: DataSummary, norm: str, eps: float) -> dict[str, float]:
    """The budget in the unit of the data, where that is another one than eps has."""
    return {} if data.scale == 1 or norm == "l0" else {"eps_in_data_unit": eps * data.scale}


def _params(campaign: TrackedCampaign, item: CellResult | DefenseResult, attack: str) -> tuple[dict[str, str], dict[str, str]]:
    """The parameters of a run, and the texts of those that are too long to be one."""
    axes = {"defense": item.defense, "attack": attack, "seed": str(item.seed), "norm": item.norm, "eps": _text(item.eps)}
    axes |= _region(item.budget)
    axes |= {name: _text(eps) for name, eps in _in_data_unit(campaign.data, item.norm, item.eps).items()}
    params = flattened(campaign.defenses.get(item.defense, {}), "defense")
    params |= flattened(campaign.attacks.get(item.attack, {}), "attack") if isinstance(item, CellResult) else {}
    if isinstance(item, DefenseResult):
        params.setdefault("defense.kind", item.kind)
    long = {key: text for key, text in params.items() if len(text) > MAX_PARAM}
    files = {f"params/{re.sub('[ :/]', '_', key)}.txt": text for key, text in long.items()}
    return axes | params | {key: f"{text[:200]} … (whole in params/)" for key, text in long.items()}, files


def _tags(
    campaign: TrackedCampaign,
    item: CellResult | DefenseResult,
    kind: str,
    cell_id: str,
    verdict: Verdict | None,
    standing: Standing,
) -> dict[str, str]:
    tags = {
        "robustkd.kind": kind,
        "robustkd.plan_id": campaign.plan_id,
        "robustkd.cell_id": cell_id,
        "robustkd.defense": item.defense,
        "robustkd.attack": item.attack if isinstance(item, CellResult) else WORST_CASE,
        "robustkd.seed": str(item.seed),
        "robustkd.status": item.status,
        "robustkd.version": package_version(),
    }
    if verdict:
        tags["robustkd.verdict"] = verdict
    if standing != UNKNOWN:
        tags |= {"robustkd.holds": ANSWERS[standing.holds], "mlflow.runColor": COLOURS[standing.holds]}
    if item.error:
        tags["robustkd.error"] = descriptions.truncate(redacted(item.error), 2000)
    return tags


def _points(item: CellResult | DefenseResult, names: Iterable[str]) -> list[Point]:
    """The numbers of ``names`` before and under the attack (or attacks), and the curve."""
    before = _unattacked(item)
    points = [point for name in names for point in course(name, before.get(name), getattr(item, name))]
    return points + _curve(item.curve)


def _unattacked(item: CellResult | DefenseResult) -> dict[str, float | None]:
    """What is known of the metrics before any attack."""
    clean = item.clean_accuracy if item.budget.of_images else None  # of prompts it is about other requests
    low, high = (None, None) if clean is None else wilson(count_of(clean, item.n), item.n)
    shares = {"clean_accuracy": item.clean_accuracy, "robust_accuracy": clean, "ci_low": low, "ci_high": high}
    spent = ("attack_success_rate", "median_norm", "forward_passes", "backward_passes", "wall_seconds", "train_seconds")
    return {**shares, **dict.fromkeys(spent, 0.0), "n": item.n}


def course(name: str, before: float | None, after: float | None) -> list[Point]:
    """A metric before (step 0) and after what a run is of (step 1); nothing where there is no number.

    MLflow draws a bar chart of its own for each metric that has no step after 0, and a page of such bars says nothing.
    """
    if after is None or not math.isfinite(after):
        return []
    first = [Point(name, 0, _rounded(before))] if before is not None and math.isfinite(before) else []
    return [*first, Point(name, 1, _rounded(after))]


def _best(results: Results) -> DefenseSummary | None:
    """The defense that a campaign's own run speaks of: the highest whose number may be believed, else the highest."""
    rows = [row for row in summary_rows(results) if row.robust_accuracy is not None]
    order = {"credible": 2, "suspect": 1}
    return max(rows, key=lambda row: (order.get(row.verdict or "", 0), row.robust_accuracy or 0.0), default=None)


def _accuracies(best: DefenseSummary | None, *, of_images: bool) -> list[Point]:
    if best is None:
        return []
    clean = best.clean_accuracy
    return [
        *course("clean_accuracy", clean, clean),
        *course("robust_accuracy", clean if of_images else None, best.robust_accuracy),
        *course("ci_low", None, best.ci_low),
        *course("ci_high", None, best.ci_high),
    ]


def _with_link(note: str, campaign: TrackedCampaign, item: CellResult | DefenseResult | None = None) -> str:
    """A note with a link to the samples in ``robustkd view`` below its first paragraph, for MLflow folds what is further down.

    Nothing is added where the results folder is not known.
    """
    if not campaign.key:
        return note
    of: dict[str, object] = {"run": campaign.key}
    if item is not None:
        of |= {"defense": item.defense, "seed": item.seed}
    if isinstance(item, CellResult):
        of |= {"show": "broken", "by": item.attack}
    page, what = ("campaign", "The campaign") if item is None else ("samples", "Its samples")
    link = f"[{what} in the viewer]({VIEWER}/{page}?{urlencode(of)}), while `robustkd view runs` runs on this machine."
    first, gap, rest = note.partition("\n\n")
    return descriptions.truncate(f"{first}\n\n{link}{gap}{rest}")


def _remedied(result: DefenseResult) -> list[Point]:
    after = result.remedy.robust_accuracy if result.remedy else None
    return course("robust_accuracy_with_remedy", result.robust_accuracy, after)


def _check_passes(result: DefenseResult) -> list[Point]:
    names = ("forward_passes", "backward_passes")
    return [
        point
        for name in names
        if result.checks
        for point in course(f"check_{name}", 0.0, float(sum(getattr(finding, name) for finding in result.checks)))
    ]


def _tradeoff(result: DefenseResult) -> list[Point]:
    clean, robust = result.clean_accuracy, result.robust_accuracy
    if clean is None or robust is None:
        return []
    return [*course("w_robust", clean, w_robust(clean, robust)), *course("nrr", clean, nrr(clean, robust))]


def _bracket(found: Bracket | None) -> list[Point]:
    """What is certified, its interval, and what is left of the robust accuracy where analyses break samples too."""
    if found is None:
        return []
    values = {
        "certified_accuracy": found.certified,
        "certified_ci_low": found.ci_low,
        "certified_ci_high": found.ci_high,
        "attacked_accuracy": found.attacked,
    }
    return [point for name, value in values.items() for point in course(name, None, value)]


def _analysed(result: DefenseResult) -> list[Point]:
    """The same analysis with other parameters gives the next step of the same metrics; the first is 1 (see ``course``)."""
    steps: Counter[str] = Counter()
    points = []
    for table in result.analyses.values():
        points += [Point(_legal(name), 1 + steps[name], _rounded(value)) for name, value in table.metrics.items()]
        steps.update(table.metrics.keys())
    return points


def _curve(curve: Iterable[CurvePoint]) -> list[Point]:
    """Step i of both metrics is the i-th eps, so that the two line up; nothing of a single eps, which is the robust accuracy itself."""
    points = list(curve)
    if len(points) < 2:
        return []
    return [
        Point(name, step, _rounded(value))
        for step, point in enumerate(points)
        for name, value in (("eps", point.eps), ("robust_accuracy_at_eps", point.robust_accuracy))
        if math.isfinite(value)
    ]
