"""Whose runs are whose in an MLflow store that several people and machines write to.

Runs belong to a results folder, which has a random id, and to a series: a person on a machine, or a project of continuous
integration. Each series has its own experiment, so its charts over time and its tables are of its own runs alone. In the store
that the campaigns of one folder share, each results folder is a series; a store inside the results folder needs none of this.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import socket
import uuid
from pathlib import Path
from typing import NamedTuple

from robustkd.tracking.location import default_store, is_shared
from robustkd.tracking.noted import FILE, Noted, noted

_PROJECTS = ("GITHUB_REPOSITORY", "CI_PROJECT_PATH", "BITBUCKET_REPO_FULL_NAME", "BUILD_REPOSITORY_NAME", "JOB_NAME")
"""Variables in which GitHub, GitLab, Bitbucket, Azure Pipelines and Jenkins name the project, in this order."""


class Origin(NamedTuple):
    """Where tracked runs come from.

    Attributes:
        results: the id of the results folder; empty where the folder has its own store.
        series: what the experiment is told apart by from others of the same campaign; empty where there are no others.
    """

    results: str = ""
    series: str = ""

    def experiment(self, campaign: str) -> str:
        """The name of a campaign's experiment."""
        return campaign if self.series in ("", campaign) else f"{campaign} · {self.series}"


def origin_of(folder: Path, series: str | None = None) -> Origin:
    """The origin of a results folder's runs, made where it has none.

    A copied folder is another folder, and so is one in the hands of another user; a moved one is the same.

    Args:
        series: its series from now on; by default the one that it has, else the project of continuous integration, else
            ``user@host``.
    """
    local = default_store(folder) is not None
    if local and not is_shared(folder):
        return Origin()
    me, here = user(), str(folder.resolve())
    known = noted(folder)
    if known and known.user == me and not (known.folder != here and noted(Path(known.folder)) == known):
        now = Noted(known.results, series or known.series, me, here)
    else:
        now = Noted(uuid.uuid4().hex[:12], series or _default_series(me), me, here)
    if now != known:
        try:
            (folder / FILE).write_text(json.dumps(now))
        except OSError:  # not this user's to write to: the same id again each time
            unique = f"{me}@{socket.gethostname()}:{here}"
            now = now._replace(results=hashlib.sha256(unique.encode()).hexdigest()[:12])
    return Origin(now.results, Path(here).name if local else now.series)


def user() -> str:
    """The name of the user; ``unknown`` where there is none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container may run under a number without a name
        return "unknown"


def _default_series(me: str) -> str:
    named = (os.environ.get(name) for name in _PROJECTS)
    return next(filter(None, named), f"{me}@{socket.gethostname()}")
