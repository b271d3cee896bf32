"""A Dask scheduler that was suspended (SIGSTOP, a laptop's lid): its connections stay open, and nothing answers.

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

pytest.importorskip("distributed")

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
def scheduler(tmp_path):
    """A scheduler and a worker, each a process; the scheduler's, and its address."""
    file = tmp_path / "scheduler.json"
    common = ["--scheduler-file", str(file), "--no-dashboard"]
    with (tmp_path / "cluster.txt").open("w") as log:

        def start(module: str, *options: str) -> subprocess.Popen[bytes]:
            return subprocess.Popen([sys.executable, "-m", module, *common, *options], stdout=log, stderr=log, cwd=tmp_path)

        started = [start("distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0")]
        started.append(start("distributed.cli.dask_worker", "--host", "127.0.0.1", "--nthreads", "1", "--no-nanny"))
    while not file.exists():
        assert started[0].poll() is None, (tmp_path / "cluster.txt").read_text()
        time.sleep(0.1)
    yield started[0], json.loads(file.read_text())["address"]
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("goes_on", [True, False])
def test_the_driver_waits_says_so_and_goes_on_or_ends(scheduler, tmp_path, monkeypatch, goes_on):
    process, address = scheduler
    monkeypatch.setattr(dask_workers, "ANSWER_SECONDS", 2)
    plan = planning.build(spec.from_text(tiny_campaign("away", train=60, test=12, attacks=ATTACKS), "a.yaml", None))
    engine = DaskEngine(DaskEngine.Params(address=address, scheduler_minutes=0.1))
    seen = Suspends(process.pid, goes_on)
    results = run(plan, tmp_path / "out", engine, device="cpu", observers=[seen])
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
