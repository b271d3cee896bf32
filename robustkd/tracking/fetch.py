"""What a run's record needs, from MLflow's artefacts."""

from __future__ import annotations

import os
from pathlib import Path

from robustkd.contracts import UsageError
from robustkd.redaction import redacted
from robustkd.tracking.location import TrackingError

FILES = ("record.json", "results.json")


def fetch_record(run_id: str, folder: Path) -> None:
    """Download the record and the results of a campaign's run into ``folder``; a cell's run leads to its campaign's.

    Raises:
        UsageError: there is no such run, or no tracking server to ask.
        TrackingError: the server does not answer, or the run holds no record.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise UsageError(
            f"{run_id} is no folder, and MLFLOW_TRACKING_URI names no server that could know a run of that id",
            fix="name an output folder, or set MLFLOW_TRACKING_URI",
        )
    from robustkd.tracking.run_store import connect

    try:
        client = connect(uri)
        parent = client.get_run(run_id).data.tags.get("mlflow.parentRunId", run_id)
        there = {item.path for item in client.list_artifacts(parent)}
        for name in (name for name in FILES if name in there):
            client.download_artifacts(parent, name, str(folder))
    except Exception as error:
        raise TrackingError(
            f"MLflow does not give run {run_id}: {redacted(str(error))}", fix="check the id and MLFLOW_TRACKING_URI"
        ) from error
    if FILES[0] not in there:
        raise TrackingError(f"MLflow's run {run_id} holds no {FILES[0]}", fix="robustkd track CAMPAIGN writes it there")
