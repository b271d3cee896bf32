"""What a Dask worker does with a cell: it runs it in a child, as the local engine does, and looks after that child.

So memory returns to the system, a crash is one cell's failure and not the worker's, and the worker stays able to answer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from robustkd.campaigns.execution.engines.child import Child
from robustkd.campaigns.execution.errors import CellLost, WorkerUnfit
from robustkd.campaigns.execution.job import Job
from robustkd.campaigns.plan.cells import Cell

POLL_SECONDS = 0.5
"""Seconds between two looks at the clock, and at whether anybody still wants the cell."""
PROBE_SECONDS = 10
"""How long a worker waits for the results folder to show what the driver has written there."""
IDLE_SECONDS = 60
"""How long a child waits for its campaign's next cell. The driver may be gone without a word, and memory is others' then."""

# Idle children of this process, and what ends each of them. They stay between cells with what they have loaded.
_idle: dict[Child, threading.Timer] = {}
_lock = threading.Lock()


def run_cell(job: Job, cell: Cell, hours: float | None, topic: str, probe: str) -> tuple[str, Any, str]:
    """Run a cell in a child of this worker.

    Args:
        hours: it may take.
        topic: where its progress is told, as (id, epoch, metrics).
        probe: a file that the driver has written into the results folder.

    Returns:
        ``("done", None)``, ``("failed", error)`` or ``("late", None)``, with the worker's address.
    """
    import distributed

    worker = distributed.get_worker()
    if not _sees(Path(probe)):
        why = f"the results folder {job.store} is not there, or is another one"
        return "failed", WorkerUnfit(why, fix="let every worker see it under the same path"), worker.address
    return *_in_child(job, cell, hours, topic, worker), worker.address


def _sees(probe: Path) -> bool:
    """Whether a file is there, within the time that a network file system may take to show it."""
    deadline = time.monotonic() + PROBE_SECONDS
    while not probe.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _in_child(job: Job, cell: Cell, hours: float | None, topic: str, worker: Any) -> tuple[str, Any]:
    key = worker.get_current_task()
    child = _take(job, cell)
    reusable = False
    try:
        child.send(cell)
        while True:
            child.pipe.poll(POLL_SECONDS)
            if child.has_news:
                kind, content = child.receive()
                if not child.cell:
                    reusable = not isinstance(content, CellLost)
                    return kind, content
                if kind == "progress":
                    worker.log_event(topic, (cell.id, *content))
            if hours is not None and child.seconds > 3600 * hours:
                return "late", None
            # The driver cancelled it, or is gone.
            task = worker.state.tasks.get(key)
            if task is None or task.state == "cancelled":
                return "late", None
    finally:
        if reusable:
            _keep(child)
        else:
            child.stop()


def dismiss_children(job: Job | None = None) -> None:
    """End the idle children of a campaign that is over; without one, all of them."""
    for child in _taken(lambda child: job in (None, child.job)):
        child.stop()


def _keep(child: Child) -> None:
    """Let a child wait for the next cell, for a while."""

    def retire() -> None:
        for old in _taken(lambda idle: idle is child):
            old.stop()

    timer = threading.Timer(IDLE_SECONDS, retire)
    timer.daemon = True
    with _lock:
        _idle[child] = timer
    timer.start()


def _take(job: Job, cell: Cell) -> Child:
    """A child for a cell: an idle one, at best one that has its target loaded. Those of other campaigns hold memory and are ended."""
    for child in _taken(lambda child: child.job != job):
        child.stop()
    with _lock:
        if not _idle:
            return Child(job)
        best = max(_idle, key=lambda child: cell.target in child.loaded)
        _idle.pop(best).cancel()
        return best


def _taken(which: Callable[[Child], bool]) -> list[Child]:
    with _lock:
        found = [child for child in _idle if which(child)]
        for child in found:
            _idle.pop(child).cancel()
    return found
