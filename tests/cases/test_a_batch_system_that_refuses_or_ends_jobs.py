"""Jobs of Slurm and PBS that are refused, wait, or end at their walltime. The driver waited for ever, in silence.

The commands of the batch system are scripts here, which start Dask's own worker; ``make chaos-cluster`` has real ones.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from pathlib import Path

import pytest

from robustkd.campaigns.execution.engines import dask_cluster, dask_workers
from robustkd.campaigns.execution.run import Observer
from support.campaigns import tiny_campaign

pytest.importorskip("distributed")

pytestmark = pytest.mark.timeout(240)
KEYS = "cores: 1, memory: 2GB, interface: lo, death_timeout: 20"
SUBMITS = {"slurm": ("sbatch", "Submitted batch job {}"), "pbs": ("qsub", "{}.cluster")}
CANCELS = {"slurm": "scancel", "pbs": "qdel"}


def command(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def batch(tmp_path, monkeypatch):
    """``batch(kind, refused=..)`` puts the commands of a batch system into the path; returns the folder with a file per job."""

    def put(kind: str, refused: str | None = None) -> Path:
        jobs = tmp_path / "jobs"
        jobs.mkdir()
        name, answer = SUBMITS[kind]
        if refused:
            text = f"echo {shlex.quote(refused)} >&2; exit 1"
        else:
            number = f'n=$(ls {shlex.quote(str(jobs))} | wc -l); cp "$1" {shlex.quote(str(jobs))}/$n.sh'
            text = f"{number}; setsid sh {shlex.quote(str(jobs))}/$n.sh >/dev/null 2>&1 & sleep 0.2; echo {answer.format('$!')}"
        command(tmp_path / "bin", name, text)
        command(tmp_path / "bin", CANCELS[kind], 'kill -KILL -- -"${1%%.*}" 2>/dev/null; exit 0')
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
        (tmp_path / "c.yaml").write_text(tiny_campaign("batch", train=40, test=8, attacks={"fgsm": "{kind: fgsm}"}))
        cluster = f"{{kind: {kind}, jobs: 1, {KEYS}, python: {sys.executable}}}"
        (tmp_path / "p.yaml").write_text(f"engine: {{kind: dask, cluster: {cluster}}}\n")
        return jobs

    return put


@pytest.mark.parametrize("kind", SUBMITS)
def test_what_each_job_will_ask_for_is_in_the_plan(robustkd, batch, kind):
    batch(kind)
    assert (
        f"asks for 1 job of {kind}, each asks for: cores 1, memory 2GB" in robustkd("plan", "c.yaml", "--profile", "p.yaml")[1]
    )
    planned = json.loads(robustkd("plan", "c.yaml", "--profile", "p.yaml", "--json")[1])
    assert planned["asks_for"].startswith(f"1 job of {kind}")
    assert "asks for" not in robustkd("plan", "c.yaml")[1]


@pytest.mark.parametrize("kind", SUBMITS)
def test_a_refused_job_is_an_error_with_the_words_of_the_batch_system(robustkd, batch, kind):
    pytest.importorskip("dask_jobqueue")
    batch(kind, refused=f"{SUBMITS[kind][0]}: error: invalid partition specified: nosuch")
    code, _, err = robustkd("run", "c.yaml", "--profile", "p.yaml", "--no-track")
    assert code == 2
    assert f"the batch system takes no job: {SUBMITS[kind][0]}: error: invalid partition specified: nosuch" in err
    assert "never retrieved" not in err


def test_a_missing_command_is_an_error(robustkd, batch, tmp_path, monkeypatch):
    pytest.importorskip("dask_jobqueue")
    batch("slurm")
    (tmp_path / "bin" / "sbatch").unlink()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    code, _, err = robustkd("run", "c.yaml", "--profile", "p.yaml", "--no-track")
    assert (code, "takes no job" in err, "sbatch" in err) == (2, True, True)


@pytest.mark.parametrize("kind", SUBMITS)
def test_its_scheduler_shows_nobody_in_the_network_what_runs(kind):
    """Workers reach the scheduler; Dask's HTTP server, with its dashboard, was open beside it."""
    pytest.importorskip("dask_jobqueue")
    wanted = dask_cluster.Cluster(kind=kind, cores=1, memory="2GB", interface="lo")
    with dask_cluster.Jobs(wanted).cluster as cluster:
        assert cluster.scheduler.http_server.address == "127.0.0.1"


@pytest.mark.slow
def test_a_job_that_ended_is_asked_for_again(batch, tmp_path, monkeypatch):
    jobqueue = pytest.importorskip("dask_jobqueue")
    import dask

    from robustkd.application import session
    from robustkd.campaigns.execution import profile
    from robustkd.campaigns.file import spec

    assert jobqueue
    monkeypatch.setenv("WORKERS_OF", str(tmp_path))
    jobs = batch("slurm")

    def is_own_worker(process: Path) -> bool:
        """Other tests, and other people, have workers on this machine as well."""
        try:
            own = f"WORKERS_OF={tmp_path}\0".encode() in (process / "environ").read_bytes()
            return own and b"distributed.cli.dask_worker" in (process / "cmdline").read_bytes()
        except OSError:
            return False

    monkeypatch.setattr(dask_cluster, "KEEP_SECONDS", 1)
    monkeypatch.setattr(dask_workers, "SILENCE_SECONDS", 1)
    said: list[str] = []

    class Walltime(Observer):
        def noted(self, text: str) -> None:
            said.append(text)

        def succeeded(self, cell, result) -> None:
            if len(list(jobs.iterdir())) == 1:
                for process in Path("/proc").glob("[0-9]*"):
                    if is_own_worker(process):
                        os.kill(int(process.name), signal.SIGKILL)

    with dask.config.set({"distributed.deploy.lost-worker-timeout": "1s"}):
        loaded = spec.load(str(tmp_path / "c.yaml"))
        how = profile.load(tmp_path / "p.yaml").overridden(track=False)
        results = session.run(loaded, tmp_path / "out", how, observers=[Walltime()])
    assert not results.incomplete
    assert len(list(jobs.iterdir())) >= 2
    assert any("no Dask worker is there" in text for text in said)
