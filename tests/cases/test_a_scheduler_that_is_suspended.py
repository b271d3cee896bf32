"""A Dask scheduler, or a worker, that was suspended (SIGSTOP, a laptop's lid): its connections stay open, and nothing answers.

The driver waited for the answer to one of its own questions, for ever and without a word.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from robustkd.campaigns.execution.engines import dask_workers
from robustkd.campaigns.execution.engines.dask import DaskEngine
from robustkd.campaigns.execution.run import Observer, run
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan as planning
from support.campaigns import tiny_campaign

distributed = pytest.importorskip("distributed")

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no process can be suspended here"),
]
ATTACKS = {f"pgd{steps}": f"{{kind: pgd, steps: {steps}}}" for steps in range(1, 5)}


class Suspends(Observer):
    """Suspends the scheduler when a cell has ended; where it is to go on, when it is said that it does not answer."""

    def __init__(self, pid: int, goes_on: bool) -> None:
        self.pid, self.goes_on, self.said, self.since = pid, goes_on, [], None

    def succeeded(self, cell, result) -> None:
        if self.since is None:
            self.since = time.monotonic()
            os.kill(self.pid, signal.SIGSTOP)

    def noted(self, text: str) -> None:
        self.said.append(text)
        if self.goes_on and "does not answer" in text:
            os.kill(self.pid, signal.SIGCONT)


@pytest.fixture
def cluster(tmp_path):
    """``cluster(workers)`` starts a scheduler and workers, each a process; returns the processes and the scheduler's address."""
    file = tmp_path / "scheduler.json"
    common = ["--scheduler-file", str(file), "--no-dashboard"]
    started: list[subprocess.Popen[bytes]] = []

    def start(module: str, *options: str) -> None:
        with (tmp_path / "cluster.txt").open("a") as log:
            argv = [sys.executable, "-m", module, *common, *options]
            started.append(subprocess.Popen(argv, stdout=log, stderr=log, cwd=tmp_path))

    def start_all(workers: int) -> tuple[list[subprocess.Popen[bytes]], str]:
        start("distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0")
        for _ in range(workers):
            start("distributed.cli.dask_worker", "--host", "127.0.0.1", "--nthreads", "1", "--no-nanny")
        while not file.exists():
            assert started[0].poll() is None, (tmp_path / "cluster.txt").read_text()
            time.sleep(0.1)
        return started, json.loads(file.read_text())["address"]

    yield start_all
    for process in started:
        process.kill()
        process.wait()


def plan_of():
    return planning.build(spec.from_text(tiny_campaign("away", train=60, test=12, attacks=ATTACKS), "a.yaml", None))


@pytest.mark.slow
def test_workers_that_are_suspended_get_no_cell_and_the_other_works(cluster, tmp_path, monkeypatch):
    processes, address = cluster(3)
    with distributed.Client(address, set_as_default=False) as client:
        client.wait_for_workers(3, timeout=120)
    for process in processes[2:]:
        os.kill(process.pid, signal.SIGSTOP)
    monkeypatch.setattr(dask_workers, "ANSWER_SECONDS", 3)
    seen = Suspends(0, goes_on=False)
    seen.since = 0.0  # nothing is to be suspended later
    results = run(plan_of(), tmp_path / "out", DaskEngine(DaskEngine.Params(address=address)), device="cpu", observers=[seen])
    assert not results.incomplete
    assert len([text for text in seen.said if "has no answer" in text and "it gets no cell" in text]) == 2, seen.said


@pytest.mark.parametrize("goes_on", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_driver_waits_says_so_and_goes_on_or_ends(cluster, tmp_path, monkeypatch, goes_on):
    (process, _), address = cluster(1)
    monkeypatch.setattr(dask_workers, "ANSWER_SECONDS", 2)
    engine = DaskEngine(DaskEngine.Params(address=address, scheduler_minutes=0.1))
    seen = Suspends(process.pid, goes_on)
    results = run(plan_of(), tmp_path / "out", engine, device="cpu", observers=[seen])
    assert any("the Dask scheduler does not answer; waiting for it" in text for text in seen.said)
    if goes_on:
        assert "the Dask scheduler answers again" in seen.said
        assert not results.incomplete
        return
    assert time.monotonic() - seen.since < 60
    lost = [cell for cell in results.cells if cell.status != "done"]
    assert lost
    assert all("the Dask scheduler is gone" in cell.error and "running again goes on" in cell.error for cell in lost)
    assert (tmp_path / "out/results.json").is_file()
