"""MLflow stores and servers of a test's own, these on the loopback interface."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Postgresql:
    """A database server of a test's own; ``call`` runs one of PostgreSQL's programs as the user that it belongs to."""

    uri: str
    call: Callable[..., None]
    cluster: tuple[str, ...]
    options: tuple[str, ...]

    def start(self) -> None:
        self.call("pg_ctl", *self.cluster, "-w", *self.options, "start")

    def stop(self, mode: str = "immediate") -> None:
        """``immediate`` as in a crash; ``fast`` tells its clients first."""
        self.call("pg_ctl", *self.cluster, "-w", "-m", mode, "stop")


@pytest.fixture
def postgresql_server() -> Iterator[Postgresql]:
    """PostgreSQL in a cluster of its own, run by an unprivileged user in a folder that is removed afterwards."""
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

    cluster = ("-D", str(folder / "data"))
    options = ("-l", str(folder / "log"), "-o", f"-h 127.0.0.1 -p {port} -k {folder} -c fsync=off")
    one = Postgresql(f"postgresql://keeper:planted-password@127.0.0.1:{port}/postgres", call, cluster, options)
    try:
        call("initdb", *cluster, "-U", "keeper", "-A", "scram-sha-256", f"--pwfile={password}", "-E", "UTF8", "--no-sync")
        one.start()
        yield one
        one.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgresql(postgresql_server: Postgresql) -> str:
    """The URI of a database."""
    return postgresql_server.uri
