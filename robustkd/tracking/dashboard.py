"""How to look at an MLflow store: the page of a results folder, and the server that shows it."""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from importlib.metadata import entry_points
from pathlib import Path
from typing import NamedTuple

from robustkd.contracts import UsageError
from robustkd.redaction import redacted
from robustkd.tracking import views
from robustkd.tracking.location import DATABASE, artifact_location, default_store, is_shared, read_mark, tracking_uri
from robustkd.tracking.noted import noted

APP = "robustkd"
"""What MLflow's command line calls ``dashboard_app``."""


class UiCommand(NamedTuple):
    """A server to start: its command line, what its environment needs beside the present one, and the page to open."""

    argv: list[str]
    env: dict[str, str]
    url: str


def page_url(folder: Path, server: str) -> str:
    """The page of a results folder's experiment on an MLflow server."""
    database = default_store(folder)
    if database is not None and is_shared(folder):
        experiment = _experiment_of(database, folder)
    else:
        mark = read_mark(folder)
        experiment = mark.experiment_id if mark else None
    # Without the credentials, not with them masked: a person is to open it.
    return redacted(server.rstrip("/")).replace("***@", "") + "/" + views.page(experiment)


def _experiment_of(database: Path, folder: Path) -> str | None:
    """The experiment with the newest run of a results folder in a store that it shares; None where there is none.

    A mark does not say it: the folder may have been moved here from beside another store.
    """
    known = noted(folder)
    if known is None or not database.is_file():
        return None
    query = (
        "SELECT runs.experiment_id FROM runs JOIN tags ON tags.run_uuid = runs.run_uuid "
        "WHERE tags.key = 'robustkd.results' AND tags.value = ? ORDER BY runs.start_time DESC LIMIT 1"
    )
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as store:
            row = store.execute(query, (known.results,)).fetchone()
    except sqlite3.Error:
        return None
    return str(row[0]) if row else None


def ui_command(folder: Path, port: int = 5000) -> UiCommand:
    """The MLflow server that shows a results folder, on this machine only.

    Raises:
        UsageError: nothing was tracked there, or a tracking server is running elsewhere already.
    """
    uri, database = tracking_uri(folder), default_store(folder)
    if uri.startswith(("http://", "https://")):
        raise UsageError("MLFLOW_TRACKING_URI names a server, which has its own pages", fix=f"open {page_url(folder, uri)}")
    if database is not None and not database.is_file():
        raise UsageError(
            f"{database.parent} holds no {DATABASE}", fix="run the campaign, or rebuild it with: robustkd track CAMPAIGN"
        )
    argv = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    if entry_points(group="mlflow.app", name=APP):
        argv += ["--app-name", APP]
    # By environment, not by argument: a database URI may hold a password, and command lines are public on a machine.
    env = {"MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    env["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # else seven more processes of 250 MB wait for jobs that are not ours
    if location := artifact_location(folder, uri):
        env["MLFLOW_DEFAULT_ARTIFACT_ROOT"] = location
    return UiCommand(argv, env, page_url(folder, f"http://127.0.0.1:{port}"))
