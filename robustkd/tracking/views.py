"""Tables ready to open in MLflow's own pages.

MLflow shows no metric until somebody picks columns. Its pages keep saved views in tags of the experiment (menu "Views",
and links that carry a view's key), so a campaign brings its own. A version of MLflow that does not know them ignores them.
"""

from __future__ import annotations

import json
import time
from typing import Any

from robustkd.contracts.json_value import JsonValue

DEFENSES, CELLS, MEANS = "robustkd-defenses", "robustkd-cells", "robustkd-means"
TREND, FAILURES, CHARTS = "robustkd-trend", "robustkd-failures", "robustkd-charts"
KEYS = {"defenses": DEFENSES, "cells": CELLS, "means": MEANS, "trend": TREND, "failures": FAILURES, "charts": CHARTS}
_TAG = "mlflow.sharedViewState."
_NAME, _CREATED, _DURATION = "attributes.`Run Name`", "runDateAndNestInfo", "duration"


def experiment_tags(plan_id: str, results: str = "") -> dict[str, str]:
    """The saved views on the runs of one plan, in one results folder where ``results`` is its id, as tags of the experiment."""
    chosen = f"tags.`robustkd.plan_id` = '{plan_id}'" + (f" AND tags.`robustkd.results` = '{results}'" if results else "")
    number = [
        _metric("robust_accuracy"),
        *map(_tag, ("robustkd.verdict", "robustkd.holds")),
        *map(_metric, ("clean_accuracy", "ci_low", "ci_high")),
    ]
    strength = map(_metric, ("attack_success_rate", "median_norm", "forward_passes", "backward_passes", "wall_seconds"))
    defenses = [*number, *map(_param, ("defense", "defense.kind", "seed")), "attributes.`Models`"]
    cells = [*number, *strength, *map(_param, ("defense", "attack", "seed")), _tag("robustkd.status")]
    # No intervals with the means: a mean of the seeds' intervals would not be one.
    means = [*number[:4], _metric("attack_success_rate")]
    lost = [_tag("robustkd.status"), _tag("robustkd.error"), *map(_param, ("defense", "attack", "seed"))]
    failed = f"tags.`robustkd.status` != 'done' AND tags.`robustkd.kind` != 'campaign' AND {chosen}"
    seeds_together = {
        "aggregateFunction": "average",
        "groupByKeys": [{"mode": "param", "groupByData": name} for name in ("defense", "attack")],
    }
    return {
        _TAG + DEFENSES: _view("Defenses: worst case and verdict", _runs("defense", chosen), defenses),
        _TAG + CELLS: _view("Cells: every attack", _runs("cell", chosen), cells),
        _TAG + MEANS: _view("Means over seeds", _runs("cell", chosen), means, groupBy=seeds_together),
        _TAG + TREND: _view("How each defense moved", "tags.`robustkd.kind` = 'trend'", [*number, _param("defense")]),
        _TAG + FAILURES: _view("Failures", failed, lost),
        _TAG + CHARTS: _view("Charts: robust and clean accuracy", _runs("defense", chosen), defenses, **_charts()),
    }


def page(experiment_id: str | None, view: str = DEFENSES) -> str:
    """A page of MLflow, as it follows the server's address: a view, or the list of experiments.

    Without the workflow in the address, MLflow opens a page about LLM traces.
    """
    if experiment_id is None:
        return "#/experiments?workflowType=machine_learning"
    shown = "&compareRunsMode=CHART" if view == CHARTS else ""
    return f"#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={view}{shown}"


def _view(name: str, query: str, columns: list[str], **more: Any) -> str:
    state = {
        "searchFilter": query,
        "orderByKey": _metric("robust_accuracy"),
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
        # Without an order MLflow sorts metrics by name and puts tags, so the verdict, last.
        "columnOrder": [_NAME, *columns, _CREATED, _DURATION],
        "columnWidths": {_NAME: 240} | {column: _width(column) for column in columns},
        "runsHiddenMode": "SHOW_ALL",
        **more,
    }
    now = int(time.time() * 1000)
    return json.dumps({"name": name, "createdAt": now, "updatedAt": now, "state": json.dumps(state)})


def _width(column: str) -> int:
    """Pixels that a column's heading takes: MLflow cuts one that is wider than its column."""
    return max(90, 32 + 8 * len(column.split("`")[1] if "`" in column else column))


def _charts() -> dict[str, JsonValue]:
    """Both accuracies as bars, and one against the other; without this MLflow draws every metric, by the alphabet."""
    section = "robustkd"
    clean, robust = ({"key": name, "type": "METRIC"} for name in ("clean_accuracy", "robust_accuracy"))
    cards: list[dict[str, JsonValue]] = [
        {"type": "BAR", "metricKey": robust["key"], "runsCountToCompare": 20},
        {"type": "BAR", "metricKey": clean["key"], "runsCountToCompare": 20},
        {"type": "SCATTER", "xaxis": clean, "yaxis": robust, "runsCountToCompare": 100},
    ]
    common: dict[str, JsonValue] = {"metricSectionId": section, "isGenerated": False, "deleted": False}
    return {
        "compareRunSections": [{"uuid": section, "name": "Does it hold?", "display": True, "isReordered": False}],
        "compareRunCharts": [{"uuid": f"{section}-{place}", **common, **card} for place, card in enumerate(cards)],
    }


def _runs(kind: str, chosen: str) -> str:
    return f"tags.`robustkd.kind` = '{kind}' AND {chosen}"


def _metric(name: str) -> str:
    return f"metrics.`{name}`"


def _param(name: str) -> str:
    return f"params.`{name}`"


def _tag(name: str) -> str:
    return f"tags.`{name}`"
