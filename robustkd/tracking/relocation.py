"""The store of a results folder that was moved or copied: it keeps its files here, and not where the folder came from.

MLflow notes absolute places and has no call that changes them. Left alone, a copy writes its files into the original.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from robustkd.tracking.location import ARTIFACTS, TrackingError, default_store, home

_PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""The tables and columns in which MLflow notes where files are."""


def relocate(folder: Path) -> None:
    """Let the folder's own store know the files that lie beside it. Nothing is done where another store is used, or none lie there.

    Raises:
        TrackingError: the database cannot be written.
    """
    database, here = default_store(folder), home(folder) / ARTIFACTS
    if database is None or not database.is_file() or not here.is_dir():
        return
    try:
        _rewrite(database, here.as_uri())
    except sqlite3.Error as error:
        raise TrackingError(
            f"{database} cannot be told that its files are in {here} now: {error}", fix="let it be written to"
        ) from error


def _rewrite(database: Path, here: str) -> None:
    with closing(sqlite3.connect(database, timeout=60)) as store:
        if not store.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'experiments'").fetchone():
            return
        noted = store.execute("SELECT DISTINCT artifact_location FROM experiments")
        places = [
            place for (place,) in noted if place != here and place.startswith("file:") and place.endswith(f"/{ARTIFACTS}")
        ]
        for place in places:
            for table, column in _PLACES:
                store.execute(
                    f"UPDATE {table} SET {column} = :here || substr({column}, :rest) WHERE substr({column}, 1, :rest - 1) = :place",
                    {"here": here, "place": place, "rest": len(place) + 1},
                )
        store.commit()
