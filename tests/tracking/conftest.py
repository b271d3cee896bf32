"""MLflow stores and servers of a test's own, these on the loopback interface."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.mlflow_server import Server, free_port


@pytest.fixture
def folder(empty_store, tmp_path, monkeypatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    out = tmp_path / "out with a space"
    out.mkdir()
    shutil.copy(empty_store, out / "mlflow.db")
    return out


@pytest.fixture
def server(tmp_path_factory) -> Iterator[Callable[[str], Server]]:
    """``server(backend)`` starts one; all end with the test."""
    started: list[Server] = []

    def start(backend: str | None = None) -> Server:
        folder = tmp_path_factory.mktemp("server")
        started.append(Server(backend or f"sqlite:///{folder}/mlflow.db", folder))  # before it starts: it ends with the test
        return started[-1].start()

    yield start
    for one in started:
        one.kill()


@pytest.fixture
def postgresql() -> Iterator[str]:
    """The URI of a database in a cluster of its own, run by an unprivileged user in a folder that is removed afterwards."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin")) or [Path(shutil.which("initdb") or "/none/initdb").parent]
    pytest.importorskip("psycopg", reason="pip install 'robustkd[postgresql]'")
    if not (found[-1] / "initdb").exists():
        pytest.skip("no PostgreSQL here: apt-get install postgresql")
    user = "nobody" if os.getuid() == 0 else None  # PostgreSQL does not start as root
    folder = Path("/tmp") / f"robustkd-postgresql-{os.getpid()}"
    folder.mkdir(mode=0o700)
    if user:
        shutil.chown(folder, user)
    port, password = free_port(), folder / "password"
    password.write_text("planted-password\n")
    if user:
        shutil.chown(password, user)

    def call(program: str, *arguments: str) -> None:
        subprocess.run([found[-1] / program, *arguments], user=user, cwd=folder, check=True, capture_output=True, timeout=300)

    cluster = ["-D", str(folder / "data")]
    try:
        call("initdb", *cluster, "-U", "keeper", "-A", "scram-sha-256", f"--pwfile={password}", "-E", "UTF8", "--no-sync")
        options = f"-h 127.0.0.1 -p {port} -k {folder} -c fsync=off"
        call("pg_ctl", *cluster, "-w", "-l", str(folder / "log"), "-o", options, "start")
        yield f"postgresql://keeper:planted-password@127.0.0.1:{port}/postgres"
        call("pg_ctl", *cluster, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
