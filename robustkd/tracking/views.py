"""Tables ready to open in MLflow's own pages.

MLflow shows no metric until somebody picks columns. Its pages keep saved views in tags of the experiment (menu "Views",
and links that carry a view's key), so a campaign brings its own. A version of MLflow that does not know them ignores them.
"""

from __future__ import annotations

import json
import time
from typing import Any

DEFENSES, CELLS, MEANS = "robustkd-defenses", "robustkd-cells", "robustkd-means"
_TAG = "mlflow.sharedViewState."
_NAME = "attributes.`Run Name`"
_VERDICT, _STATUS = "tags.`robustkd.verdict`", "tags.`robustkd.status`"
_ACCURACIES = ["metrics.`robust_accuracy`", "metrics.`ci_low`", "metrics.`ci_high`", "metrics.`clean_accuracy`"]
_COSTS = ["metrics.`forward_passes`", "metrics.`backward_passes`", "metrics.`wall_seconds`"]
_AXES = ["params.`defense`", "params.`attack`", "params.`seed`"]


def experiment_tags() -> dict[str, str]:
    """The saved views, as tags of the experiment."""
    defenses = _view(
        "Defenses: worst case and verdict",
        "tags.`robustkd.kind` = 'defense'",
        [
            *_ACCURACIES[:1],
            _VERDICT,
            *_ACCURACIES[1:],
            "params.`defense`",
            "params.`defense.kind`",
            "params.`seed`",
            "attributes.`Models`",
        ],
    )
    cells = _view(
        "Cells: every attack",
        "tags.`robustkd.kind` = 'cell'",
        [
            *_ACCURACIES[:1],
            _VERDICT,
            *_ACCURACIES[1:],
            "metrics.`attack_success_rate`",
            "metrics.`median_norm`",
            *_COSTS,
            *_AXES,
            _STATUS,
        ],
    )
    grouped = {
        "aggregateFunction": "average",
        "groupByKeys": [{"mode": "param", "groupByData": name} for name in ("defense", "attack")],
    }
    means = _view("Defense x attack: mean over seeds", "tags.`robustkd.kind` = 'cell'", _ACCURACIES, groupBy=grouped)
    return {_TAG + DEFENSES: defenses, _TAG + CELLS: cells, _TAG + MEANS: means}


def page(experiment_id: str | None) -> str:
    """Where in MLflow's pages a person should land: what follows the server's address."""
    if experiment_id is None:
        return "/#/experiments?workflowType=machine_learning"
    return f"/#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={DEFENSES}"


def _view(name: str, query: str, columns: list[str], **more: Any) -> str:
    state = {
        "searchFilter": query,
        "orderByKey": "metrics.`robust_accuracy`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
        # Without an order MLflow sorts metrics by name and shows tags, so the verdict, last.
        "columnOrder": [_NAME, *columns, "runDateAndNestInfo", "duration"],
        "columnWidths": {_NAME: 260} | dict.fromkeys(columns, 125),
        "runsHiddenMode": "SHOW_ALL",
        **more,
    }
    now = int(time.time() * 1000)
    return json.dumps({"name": name, "createdAt": now, "updatedAt": now, "state": json.dumps(state)})
