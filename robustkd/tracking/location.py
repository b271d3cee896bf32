"""Where a campaign's MLflow store is, and how to look at it."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

from robustkd.contracts import RobustkdError, UsageError
from robustkd.redaction import redacted
from robustkd.tracking import views
from robustkd.tracking.noted import noted

DATABASE, ARTIFACTS, MARK = "mlflow.db", "mlartifacts", ".mlflow-tracked"


SHARED = "runs"
"""What a folder of campaigns is called: the results folders in it share one store."""


class TrackingError(RobustkdError):
    """MLflow did not take what it was given."""


class UiCommand(NamedTuple):
    """A server to start: its command line, what its environment needs beside the present one, and the page to open."""

    argv: list[str]
    env: dict[str, str]
    url: str


class Mark(NamedTuple):
    """What a results folder remembers of its last tracking: a digest of what was logged, and the experiment."""

    digest: str
    experiment_id: str


def tracking_uri(folder: Path) -> str:
    """The MLflow store of a results folder: ``MLFLOW_TRACKING_URI`` when it is set, else a SQLite file in its ``home``."""
    return os.environ.get("MLFLOW_TRACKING_URI") or _own_store(folder)


def home(folder: Path) -> Path:
    """The folder of the SQLite store of a results folder: the folder of campaigns that it lies in (``SHARED``), else itself.

    A results folder that has a store of its own, as earlier versions made them, keeps it. A folder of campaigns is its own home.
    """
    # Not resolve(), which would leave ``runs`` where it is a link.
    here = Path(os.path.abspath(folder))  # noqa: PTH100
    shared = here.parent.name == SHARED and not (here / DATABASE).is_file()
    return (here.parent if shared else here).resolve()


def is_shared(folder: Path) -> bool:
    """Whether a results folder's own store may hold other campaigns' runs."""
    return home(folder) != folder.resolve()


def _own_store(folder: Path) -> str:
    from sqlalchemy.engine import URL  # late: it loads half a second's worth of modules

    file = str(home(folder) / DATABASE)
    uri = str(URL.create("sqlite", database=file))
    # MLflow makes the folder that an unquoted sqlite: URI would name; it leaves one with a driver alone.
    return uri if uri.endswith(file) else str(URL.create("sqlite+pysqlite", database=file))


def default_store(folder: Path) -> Path | None:
    """The SQLite file of a results folder; None when ``MLFLOW_TRACKING_URI`` names another store."""
    named = os.environ.get("MLFLOW_TRACKING_URI")
    own = not named or (
        named.startswith("sqlite") and named == _own_store(folder)
    )  # a server's driver loads no sqlalchemy for it
    return home(folder) / DATABASE if own else None


def served_at(uri: str | None) -> str | None:
    """The MLflow server that is tracked to, ``uri`` or that of ``MLFLOW_TRACKING_URI``; None where it is a database."""
    named = uri or os.environ.get("MLFLOW_TRACKING_URI") or ""
    return named if named.startswith(("http://", "https://")) else None


def artifact_location(folder: Path, uri: str) -> str | None:
    """Where a new experiment puts its files; None lets a server decide."""
    served = uri.startswith(("http://", "https://", "databricks"))
    return None if served else (home(folder) / ARTIFACTS).as_uri()


def local_path(uri: str) -> Path | None:
    """The folder that a ``file:`` URI names; None for any other."""
    return Path(url2pathname(urlsplit(uri).path)) if uri.startswith("file:") else None


def read_mark(folder: Path) -> Mark | None:
    """The folder's mark; None when there is none, or its store is gone."""
    database = default_store(folder)
    if database is not None and not database.is_file():
        return None
    try:
        return Mark(*json.loads((folder / MARK).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def write_mark(folder: Path, mark: Mark) -> None:
    """Remember what was logged: a finished campaign need not open MLflow again to find out."""
    (folder / MARK).write_text(json.dumps(mark))


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
    # By environment, not by argument: a database URI may hold a password, and command lines are public on a machine.
    env = {"MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    env["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # else seven more processes of 250 MB wait for jobs that are not ours
    if location := artifact_location(folder, uri):
        env["MLFLOW_DEFAULT_ARTIFACT_ROOT"] = location
    return UiCommand(argv, env, page_url(folder, f"http://127.0.0.1:{port}"))
