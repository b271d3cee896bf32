"""A new SQLite file with MLflow's tables.

MLflow makes its tables by some sixty migrations, which take a second of computing. The first store that is opened with a version of MLflow
is kept, empty, in the user's cache, and later ones begin as a copy of it.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from importlib.metadata import version
from pathlib import Path

from robustkd.data.files import cache_folder


def empty_database() -> Path:
    """Where an empty store of the installed version of MLflow is kept."""
    return cache_folder() / "mlflow" / f"empty-{version('mlflow')}.db"


def begin(database: Path) -> bool:
    """Make the SQLite file where there is none: with MLflow's tables if an empty store is kept. Returns whether they are still to be made.

    The file logs ahead: a transaction then waits once for the disk, not four times. The mode is kept in the file. Where a file system
    does not take it, SQLite goes on in its own.
    """
    if database.exists():
        return False
    database.parent.mkdir(parents=True, exist_ok=True)
    try:
        _copy(empty_database(), database, place=_place)
    except sqlite3.Error:  # none is kept, or it is damaged
        tables = False
    else:
        tables = True
    with closing(sqlite3.connect(database)) as store:
        store.execute("PRAGMA journal_mode=WAL")
    return not tables


def keep(database: Path) -> None:
    """Keep a copy of a store in which MLflow has made its tables and nothing else."""
    # A cache that cannot be written costs a second in each new folder, and nothing else.
    with suppress(OSError, sqlite3.Error):
        empty_database().parent.mkdir(parents=True, exist_ok=True)
        # MLflow's own first experiment names the folder that it was made in; it makes another where there is none.
        _copy(database, empty_database(), "DELETE FROM experiments")


def _copy(source: Path, target: Path, *changes: str, place: Callable[[Path, Path], object] = Path.replace) -> None:
    """Copy a database, whole or not at all."""
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with (
            closing(sqlite3.connect(f"{source.as_uri()}?mode=ro", uri=True)) as there,
            closing(sqlite3.connect(partial)) as here,
        ):
            there.backup(here)
            for change in changes:
                here.execute(change)
            here.commit()
            here.execute("PRAGMA journal_mode=DELETE")  # nothing of it is in a second file
        place(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _place(partial: Path, target: Path) -> None:
    """Give the copy its name, unless another process has made the file meanwhile and writes to it."""
    try:
        os.link(partial, target)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links
        partial.replace(target)
