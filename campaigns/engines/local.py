"""Cells in child processes of this machine.

A child is started by ``spawn``, works on one cell at a time and keeps its data and models between cells. When it dies, that
cell has failed and a new child takes its place. On a GPU the driver's own memory stays free, because only children use it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from robustkd.campaigns.cells import Cell
from robustkd.campaigns.engines import CellCrash, Engine, Listener
from robustkd.campaigns.schedule import Schedule
from robustkd.campaigns.worker import Job, Worker
from robustkd.contracts import RobustkdError

_SPAWN = multiprocessing.get_context("spawn")


@dataclass
class _Child:
    process: Any
    pipe: Connection
    cell: Cell | None = None

    def give(self, cell: Cell) -> None:
        self.cell = cell
        self.pipe.send(cell)


class LocalEngine(Engine):
    """Child processes on this machine.

    By default as many as there are cores (one in all on a GPU), but no more than there are cells.
    """

    def run(self, job: Job, schedule: Schedule, listener: Listener) -> None:
        """Run every cell of ``schedule``."""
        children: list[_Child] = []
        count = self.workers or default_workers(job.device)
        try:
            while True:
                while (idle := next((child for child in children if child.cell is None), None)) or len(children) < count:
                    cell = schedule.take()
                    if cell is None:
                        break
                    if idle is None:
                        idle = _start(job)
                        children.append(idle)
                    idle.give(cell)
                    listener.started(cell)
                busy = [child for child in children if child.cell is not None]
                if not busy:
                    return
                for ready in wait([child.pipe for child in busy]):
                    child = next(child for child in busy if child.pipe is ready)
                    if not self._hear(child, schedule, listener):
                        children.remove(child)
        finally:
            _stop(children)

    def _hear(self, child: _Child, schedule: Schedule, listener: Listener) -> bool:
        """Take one message of a child; False when the child is dead."""
        cell = child.cell
        assert cell is not None
        try:
            kind, content = child.pipe.recv()
        except (EOFError, OSError):
            child.process.join()
            code = child.process.exitcode
            how = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
            fix = "it may have run out of memory: use fewer --workers or smaller data" if code == -signal.SIGKILL else None
            self.failed(cell, CellCrash(f"its process died ({how})", fix=fix), schedule, listener)
            return False
        if kind == "progress":
            listener.progressed(cell, *content)
            return True
        child.cell = None
        if kind == "done":
            self.succeeded(cell, schedule, listener)
        else:
            self.failed(cell, content, schedule, listener)
        return True


def default_workers(device: str) -> int:
    """One child a core; on a GPU a single one, since cells would compete for its memory."""
    if device.startswith("cuda"):
        return 1
    if device == "auto":
        import torch

        if torch.cuda.is_available():
            return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start(job: Job) -> _Child:
    mine, theirs = _SPAWN.Pipe()
    process = _SPAWN.Process(target=_child_main, args=(job, theirs), daemon=True)
    process.start()
    theirs.close()
    return _Child(process, mine)


def _stop(children: list[_Child]) -> None:
    for child in children:
        if child.cell is None:
            child.pipe.close()  # an idle child ends by itself when nobody can ask it for more
        else:
            child.process.terminate()
    for child in children:
        child.process.join(5)
        if child.process.is_alive():
            child.process.kill()
            child.process.join()


def _child_main(job: Job, pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the driver decides what ends

    def report(cell: Cell, epoch: int, metrics: Mapping[str, float]) -> None:
        pipe.send(("progress", (epoch, dict(metrics))))

    worker: Worker | None = None
    while True:
        try:
            cell = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            worker = worker or Worker(job, report)
            worker.run(cell)
            pipe.send(("done", None))
        except RobustkdError as error:
            pipe.send(("failed", error))
        except Exception as error:
            pipe.send(("failed", CellCrash.of(error)))
