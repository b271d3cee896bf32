"""A new MLflow store begins as a copy of an empty one, made once for each version of MLflow."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from robustkd.tracking import new_database, run_store
from robustkd.tracking.location import tracking_uri


def rows(database: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(database)) as store:
        return store.execute(query).fetchall()


def opened(folder: Path) -> Path:
    database = folder / "mlflow.db"
    if new_database.begin(database):
        run_store.connect(tracking_uri(folder))
        new_database.keep(database)
    else:
        run_store.connect(tracking_uri(folder)).search_experiments()
    return database


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "cache" / "empty.db"
    monkeypatch.setattr(new_database, "empty_database", lambda: path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return path


def test_the_second_store_is_what_mlflow_makes(kept: Path, tmp_path: Path) -> None:
    first, second = opened(tmp_path / "first"), opened(tmp_path / "second")
    schema = "SELECT type, name, sql FROM sqlite_master ORDER BY name"
    assert kept.is_file()
    assert rows(first, schema) == rows(second, schema)
    assert rows(first, "SELECT * FROM alembic_version") == rows(second, "SELECT * FROM alembic_version")
    assert rows(second, "SELECT name FROM experiments") == [("Default",)]
    assert rows(second, "PRAGMA journal_mode") == [("wal",)]
    assert [file.name for file in kept.parent.iterdir()] == ["empty.db"]


def test_the_default_experiment_of_a_copy_does_not_name_the_folder_of_the_first(kept, tmp_path, monkeypatch) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        ((location,),) = rows(opened(tmp_path / name), "SELECT artifact_location FROM experiments")
        assert str(location).startswith(str(tmp_path / name))


def test_a_damaged_copy_is_replaced(kept: Path, tmp_path: Path) -> None:
    kept.parent.mkdir()
    kept.write_text("no database")
    database = tmp_path / "mlflow.db"
    assert new_database.begin(database)
    with closing(sqlite3.connect(database)) as store:
        store.execute("CREATE TABLE experiments (name TEXT)")
    new_database.keep(database)
    assert not new_database.begin(tmp_path / "next.db")
    assert rows(tmp_path / "next.db", "SELECT name FROM experiments") == []


def test_a_cache_that_cannot_be_written_is_no_problem(kept: Path, tmp_path: Path) -> None:
    kept.parent.write_text("a file where the folder should be")
    database = tmp_path / "mlflow.db"
    assert new_database.begin(database)
    new_database.keep(database)
    assert rows(database, "PRAGMA journal_mode") == [("wal",)]
