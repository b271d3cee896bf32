"""A process for cells: it works on one at a time and keeps its data and models between them.

It is a fresh Python that is told what to do through a pipe, and nothing of the process that starts it: neither the main
module (which multiprocessing would run again) nor a daemon's ban on children (Dask's workers are daemons). It ends when the
process that started it does (see ``parent_watchdog``).
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from multiprocessing.connection import Connection, Pipe
from typing import Any

from robustkd.campaigns.execution.errors import CellLost, WorkerUnfit, error_of
from robustkd.campaigns.execution.job import Job, Report
from robustkd.campaigns.execution.parent_watchdog import (
    command,
    environment,
    exit_with_group,
    exit_with_parent,
    kill_process_group,
)
from robustkd.campaigns.execution.worker import Worker
from robustkd.campaigns.plan.cells import Cell
from robustkd.contracts import RobustkdError
from robustkd.targets.memory import keep_freed_memory

TARGETS_KEPT = 2
"""How many targets a worker keeps in memory; the engine prefers to give it their cells."""


class Child:
    """The driver's side of such a process.

    Attributes:
        cell: what it works on; None when it is idle.
        loaded: the targets that it used last, the newest first.
        peak: the most memory it has held, in bytes, as of the last cell that it ended.
        pipe: readable when it has said something.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.cell: Cell | None = None
        self.loaded: deque[str] = deque(maxlen=TARGETS_KEPT)
        self.peak = 0
        self._began: float | None = None
        self.pipe, theirs = Pipe()
        argv = [*command(__name__), str(theirs.fileno())]
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, pass_fds=[theirs.fileno()], env=environment(), start_new_session=True
        )
        theirs.close()
        self.pipe.send(job)

    @property
    def pid(self) -> int:
        """The id of the child's process, which leads a group of its own."""
        return self._process.pid

    @property
    def seconds(self) -> float:
        """How long it has been at its cell; the time that it takes to start is not the cell's."""
        return 0.0 if self._began is None else time.monotonic() - self._began

    @property
    def has_news(self) -> bool:
        """Whether ``receive`` returns at once. A process that it forked may hold the pipe open after its death."""
        return self._process.poll() is not None or self.pipe.poll()

    def send(self, cell: Cell) -> None:
        """Let it work on a cell. A child that is dead by now is reported by ``receive``."""
        self.cell, self._began = cell, None
        if cell.target in self.loaded:
            self.loaded.remove(cell.target)
        self.loaded.appendleft(cell.target)
        with contextlib.suppress(OSError):
            self.pipe.send(cell)

    def receive(self) -> tuple[str, Any]:
        """What it says next; blocks. ``began``, ``progress`` (epoch, metrics), ``done``, or ``failed`` with the error.

        After ``failed`` with ``CellLost`` the child is of no more use: it is dead, or has too little memory left.
        """
        try:
            if self._process.poll() is not None and not self.pipe.poll():
                raise EOFError
            kind, content, self.peak = self.pipe.recv()
        except (EOFError, OSError):
            kind, content = "failed", self._death_reason()
        if kind == "began":
            self._began = time.monotonic()
        elif kind != "progress":
            self.cell = None
        return kind, content

    def stop(self) -> None:
        """End it and what it has started, whatever they are doing: a cell is in the store whole or not at all."""
        kill_process_group(self.pid)
        self._process.wait()
        self.pipe.close()
        assert self._process.stdin is not None
        self._process.stdin.close()

    def _death_reason(self) -> CellLost:
        code = self._process.wait()
        kill_process_group(self.pid)
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        fix = "it may have run out of memory: use fewer workers or smaller data" if code == -signal.SIGKILL else None
        return CellLost(f"its process died ({how})", fix=fix)


def main() -> None:
    """Take cells from the pipe and run them until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the driver decides what ends
    threading.Thread(target=exit_with_parent, daemon=True).start()
    os.dup2(2, 1)  # what a plug-in prints must not come between the lines of the driver's --json
    pipe = Connection(int(sys.argv[1]))

    # The pipe closes when the driver is dead. This thread may see it before the one that watches standard input does, and must
    # not end the process alone: what a cell has forked would live on.
    def say(kind: str, content: Any = None) -> None:
        try:
            pipe.send((kind, content, _peak()))
        except BrokenPipeError:
            exit_with_group()

    def report(cell: Cell, epoch: int, metrics: Mapping[str, float]) -> None:
        say("progress", (epoch, dict(metrics)))

    keep_freed_memory()
    job = pipe.recv()
    worker: Worker | None = None
    while True:
        try:
            cell = pipe.recv()
        except (EOFError, OSError):
            exit_with_group()
        try:
            worker = worker or _worker(job, report)
            say("began")
            worker.run(cell)
            say("done")
        except Exception as error:
            say("failed", error_of(error))


def _worker(job: Job, report: Report) -> Worker:
    try:
        worker = Worker(job, report)
        _ = worker.data
    except RobustkdError as error:
        raise WorkerUnfit(error.message, fix=error.fix) from error
    return worker


def _peak() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
