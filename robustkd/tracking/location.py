"""Where a campaign's MLflow store is, and how to look at it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

from robustkd.contracts import RobustkdError, UsageError
from robustkd.redaction import redacted
from robustkd.tracking import views

DATABASE, ARTIFACTS, MARK = "mlflow.db", "mlartifacts", ".mlflow-tracked"


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
    """The MLflow store of a results folder: ``MLFLOW_TRACKING_URI`` when it is set, else a SQLite file inside."""
    return os.environ.get("MLFLOW_TRACKING_URI") or _own_store(folder)


def _own_store(folder: Path) -> str:
    from sqlalchemy.engine import URL  # late: it loads half a second's worth of modules

    file = str(folder.resolve() / DATABASE)
    uri = str(URL.create("sqlite", database=file))
    # MLflow makes the folder that an unquoted sqlite: URI would name; it leaves one with a driver alone.
    return uri if uri.endswith(file) else str(URL.create("sqlite+pysqlite", database=file))


def default_store(folder: Path) -> Path | None:
    """The SQLite file of a results folder; None when ``MLFLOW_TRACKING_URI`` names another store."""
    named = os.environ.get("MLFLOW_TRACKING_URI")
    own = not named or (
        named.startswith("sqlite") and named == _own_store(folder)
    )  # a server's driver loads no sqlalchemy for it
    return folder.resolve() / DATABASE if own else None


def served_at(uri: str | None) -> str | None:
    """The MLflow server that is tracked to, ``uri`` or that of ``MLFLOW_TRACKING_URI``; None where it is a database."""
    named = uri or os.environ.get("MLFLOW_TRACKING_URI") or ""
    return named if named.startswith(("http://", "https://")) else None


def artifact_location(folder: Path, uri: str) -> str | None:
    """Where a new experiment puts its files; None lets a server decide."""
    served = uri.startswith(("http://", "https://", "databricks"))
    return None if served else (folder.resolve() / ARTIFACTS).as_uri()


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
    mark = read_mark(folder)
    # Without the credentials, not with them masked: a person is to open it.
    return redacted(server.rstrip("/")).replace("***@", "") + "/" + views.page(mark.experiment_id if mark else None)


def ui_command(folder: Path, port: int = 5000) -> UiCommand:
    """The MLflow server that shows a results folder, on this machine only.

    Raises:
        UsageError: nothing was tracked there, or a tracking server is running elsewhere already.
    """
    uri, database = tracking_uri(folder), default_store(folder)
    if uri.startswith(("http://", "https://")):
        raise UsageError("MLFLOW_TRACKING_URI names a server, which has its own pages", fix=f"open {page_url(folder, uri)}")
    if database is not None and not database.is_file():
        raise UsageError(f"{folder} holds no {DATABASE}", fix="run the campaign, or rebuild it with: robustkd track CAMPAIGN")
    argv = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    # By environment, not by argument: a database URI may hold a password, and command lines are public on a machine.
    env = {"MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    env["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # else seven more processes of 250 MB wait for jobs that are not ours
    if location := artifact_location(folder, uri):
        env["MLFLOW_DEFAULT_ARTIFACT_ROOT"] = location
    return UiCommand(argv, env, page_url(folder, f"http://127.0.0.1:{port}"))
