"""Cells in child processes of this machine. On a GPU the driver's own memory stays free, because only children use it."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path

from pydantic import Field
from typing_extensions import override

from robustkd.campaigns.execution.accelerators import accelerators
from robustkd.campaigns.execution.engines import Engine, Listener
from robustkd.campaigns.execution.engines.child import Child
from robustkd.campaigns.execution.errors import CellLost, CellTimeout
from robustkd.campaigns.execution.job import Job
from robustkd.campaigns.execution.schedule import Schedule
from robustkd.campaigns.plan.cells import Cell
from robustkd.contracts import Params, RobustkdError

POLL_SECONDS = 1.0
"""Seconds between two looks at the clock and the memory while no child says anything."""


class LocalParams(Params):
    """The number of child processes, and the memory that each needs."""

    workers: int | None = Field(None, ge=1, description="child processes [default: one a core; one a GPU]")
    child_gb: float | None = Field(None, gt=0, description="memory that a child needs [default: as seen so far]")


class LocalEngine(Engine):
    """Child processes on this machine: one a core, or one on each of several devices, but no more than there are cells.

    A child that is idle gets a cell only while the machine has the memory that the child may come to need beside what it
    holds: ``child_gb``, or the most that any child has held so far. One child always runs.
    """

    Params = LocalParams
    on_this_machine = True

    @override
    def run(self, job: Job, schedule: Schedule, listener: Listener) -> None:
        pool = _WorkerPool(job, self.params.workers, self.params.child_gb)
        try:
            while True:
                self._dispatch(pool, schedule, listener)
                pause = schedule.pause()
                if self.out_of_time or not (pool.busy or pause is not None):
                    return
                wait([child.pipe for child in pool.busy], POLL_SECONDS if pause is None else min(POLL_SECONDS, pause))
                ended = [news for child in pool.busy if child.has_news and (news := self._receive(child, pool, listener))]
                ended += self._overdue(pool)
                for cell, error in ended:
                    if error is None:
                        schedule.succeed(cell)
                # The next cells begin before anybody is told of these: that may take as long as a small cell does.
                self._dispatch(pool, schedule, listener)
                for cell, error in ended:
                    if error is None:
                        listener.succeeded(cell)
                    else:
                        self.failed(cell, error, schedule, listener)
        finally:
            pool.stop()

    def _dispatch(self, pool: _WorkerPool, schedule: Schedule, listener: Listener) -> None:
        while pool.has_slot and pool.memory_suffices():
            idle = pool.idle
            child = next((child for child in idle if schedule.ready(child.loaded)), idle[0] if idle else None)
            loaded = child.loaded if child else ()
            elsewhere = {target for other in pool.children if other is not child for target in other.loaded}
            cell = self.next_cell(schedule, loaded, elsewhere)
            if cell is None:
                return
            (child or pool.start()).send(cell)
            listener.started(cell)

    def _receive(self, child: Child, pool: _WorkerPool, listener: Listener) -> tuple[Cell, RobustkdError | None] | None:
        """Take one message of a child; its cell and how that failed, if it has ended."""
        cell = child.cell
        assert cell is not None
        kind, content = child.receive()
        if kind == "progress":
            listener.progressed(cell, *content)
        if child.cell:
            return None
        if isinstance(content, CellLost):
            pool.discard(child)
        return cell, content

    def _overdue(self, pool: _WorkerPool) -> list[tuple[Cell, CellTimeout]]:
        """Stop the children whose cells take too long."""
        if self.limits.cell_hours is None:
            return []
        late = [child for child in pool.busy if child.seconds > 3600 * self.limits.cell_hours]
        ended = [(child.cell, self.too_long()) for child in late if child.cell]
        for child in late:
            pool.discard(child)
        return ended


class _WorkerPool:
    """The children, at most ``workers`` of them, and the devices that they share."""

    def __init__(self, job: Job, workers: int | None, child_gb: float | None) -> None:
        self.children: list[Child] = []
        self._job, self._devices = job, job.device.split(",")
        self._most = workers or default_workers(self._devices)
        self._need = 2**30 * child_gb if child_gb else 0.0
        self._learns = child_gb is None

    @property
    def busy(self) -> list[Child]:
        return [child for child in self.children if child.cell]

    @property
    def idle(self) -> list[Child]:
        return [child for child in self.children if not child.cell]

    @property
    def has_slot(self) -> bool:
        return bool(self.idle) or len(self.children) < self._most

    def memory_suffices(self) -> bool:
        """Whether the next child to get a cell has the memory that it may come to need; one always has."""
        if self._learns:
            self._need = max([self._need, *(child.peak for child in self.children)])
        free = available_memory()
        if not self.busy or not self._need or free is None:
            return True
        return free >= self._need - min((_held(child.pid) for child in self.idle), default=0)

    def start(self) -> Child:
        """A new child, on the device that has the fewest."""
        taken = [child.job.device for child in self.children]
        child = Child(replace(self._job, device=min(self._devices, key=taken.count)))
        self.children.append(child)
        return child

    def discard(self, child: Child) -> None:
        child.stop()
        self.children.remove(child)

    def stop(self) -> None:
        for child in self.children:
            child.stop()


def default_workers(devices: list[str]) -> int:
    """One child a core; on accelerators one each, since cells would compete for their memory."""
    if len(devices) > 1 or devices[0] not in ("auto", "cpu"):
        return len(devices)
    if devices == ["auto"] and accelerators():
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory() -> int | None:
    """Bytes that the machine can give away without swapping; None where it does not say (only Linux does)."""
    return _kilobytes("/proc/meminfo", "MemAvailable")


def _held(pid: int) -> int:
    return _kilobytes(f"/proc/{pid}/status", "VmRSS") or 0


def _kilobytes(file: str, name: str) -> int | None:
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", Path(file).read_text(), re.MULTILINE)
    except OSError:
        return None
    return 1024 * int(found[1]) if found else None
