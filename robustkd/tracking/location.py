"""Where a campaign's MLflow store is, and how to look at it."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

from robustkd.contracts import UsageError

DATABASE, ARTIFACTS = "mlflow.db", "mlartifacts"


class UiCommand(NamedTuple):
    """A server to start: its command line, and what its environment needs beside the present one."""

    argv: list[str]
    env: dict[str, str]


def tracking_uri(folder: Path) -> str:
    """The MLflow store of a results folder: ``MLFLOW_TRACKING_URI`` when it is set, else a SQLite file inside."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.resolve() / DATABASE}"


def default_store(folder: Path) -> Path | None:
    """The SQLite file of a results folder; None when ``MLFLOW_TRACKING_URI`` names another store."""
    return None if os.environ.get("MLFLOW_TRACKING_URI") else folder.resolve() / DATABASE


def artifact_location(folder: Path, uri: str) -> str | None:
    """Where a new experiment puts its files; None lets a server decide."""
    served = uri.startswith(("http://", "https://", "databricks"))
    return None if served else (folder.resolve() / ARTIFACTS).as_uri()


def redacted(text: str) -> str:
    """Text without the credentials that a URI in it may carry."""
    return re.sub(r"(?<=://)[^/\s@]*(?::[^/\s]*)?@", "***@", text)


def ui_command(folder: Path, port: int = 5000) -> UiCommand:
    """The MLflow server that shows a results folder, on this machine only.

    Raises:
        UsageError: nothing was tracked there, or a tracking server is running elsewhere already.
    """
    uri, database = tracking_uri(folder), default_store(folder)
    if uri.startswith(("http://", "https://")):
        raise UsageError(
            "MLFLOW_TRACKING_URI names a server, which has its own pages", fix=f"open {redacted(uri)} in a browser"
        )
    if database is not None and not database.is_file():
        raise UsageError(f"{folder} holds no {DATABASE}", fix="run the campaign, or rebuild it with: robustkd track CAMPAIGN")
    argv = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    # By environment, not by argument: a database URI may hold a password, and command lines are public on a machine.
    env = {"MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    location = artifact_location(folder, uri)
    return UiCommand(argv, env | {"MLFLOW_DEFAULT_ARTIFACT_ROOT": location} if location else env)
