"""How a run stands while it goes on: ``progress.json`` in the results folder, there as long as the run is, for whoever looks on."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from robustkd.campaigns.execution.run import Observer
from robustkd.campaigns.plan.cells import Cell
from robustkd.campaigns.plan.plan import Plan
from robustkd.campaigns.results.failure import Failure
from robustkd.contracts import RobustkdError
from robustkd.redaction import safe_to_show
from robustkd.scoring.results import CellResult, Results

PROGRESS = "progress.json"
PAUSE = 0.5
"""Seconds between two epochs that are written."""
MOST_EPOCHS, MOST_ENDED = 400, 200
LONGEST = 600
"""Characters of why a cell failed; results.json has them all."""
LARGEST = 8 * 2**20
"""Bytes of a file that is read: this one writes far less."""


@dataclass
class RunningCell:
    """A cell that is under way: since when (seconds of the Unix epoch), and of a training what it logged, an entry an epoch.

    A number that is not finite is None.
    """

    title: str
    since: float
    history: list[dict[str, float | None]] = field(default_factory=list)


@dataclass
class FailedCell:
    """A cell that ended without a result in this run: how, and why."""

    cell_id: str
    title: str
    status: str
    error: str


@dataclass
class RunProgress:
    """How a run stands.

    Attributes:
        process, host: the driver.
        started, updated: seconds of the Unix epoch; the latter is of the last event.
        kept: cells that were finished before the run began; ``total`` have to be done in it, of which ``done`` have ended.
        running: by cell id.
        ended: the titles of the cells that ended last, the latest at the end.
        note: the last remark about the run as a whole.
    """

    process: int
    host: str
    started: float
    updated: float
    kept: int = 0
    total: int = 0
    done: int = 0
    running: dict[str, RunningCell] = field(default_factory=dict)
    failed: list[FailedCell] = field(default_factory=list)
    note: str = ""

    @property
    def alive(self) -> bool:
        """Whether the driver is running, as far as it can be seen from here: a process of another machine cannot be."""
        if self.host != socket.gethostname():
            return True
        try:
            os.kill(self.process, 0)
        except (ProcessLookupError, OverflowError, ValueError):
            return False
        except PermissionError:  # it is somebody else's
            return True
        return self.process > 0

    @property
    def seconds_left(self) -> float | None:
        """About how long the run still takes, from the cells of this run that have ended; None before any has, and when all have."""
        if not self.done or self.done >= self.total:
            return None
        return (self.updated - self.started) / self.done * (self.total - self.done)


_PROGRESS = TypeAdapter(RunProgress)


def read(folder: Path) -> RunProgress | None:
    """How the run into ``folder`` stands; None where there is none, or its file says something else."""
    file = folder / PROGRESS
    try:
        if file.stat().st_size > LARGEST:
            return None
        return _PROGRESS.validate_json(file.read_bytes())
    except (OSError, ValidationError, ValueError):
        return None


class LiveProgress(Observer):
    """Writes ``progress.json`` at each event, and removes it at the end. A folder that cannot be written is no reason to stop a run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._now: RunProgress | None = None
        self._written = 0.0

    def planned(self, plan: Plan, finished: int, todo: int) -> None:
        """Begin the file."""
        now = time.time()
        self._now = RunProgress(os.getpid(), socket.gethostname(), now, now, finished, todo)
        self._write()

    def started(self, cell: Cell) -> None:
        """Add a running cell."""
        if self._now:
            self._now.running[cell.id] = RunningCell(cell.title, time.time())
            self._write()

    def progressed(self, cell: Cell, epoch: int, metrics: Mapping[str, float]) -> None:
        """Add the numbers of an epoch."""
        if self._now and (running := self._now.running.get(cell.id)):
            running.history.append({"epoch": float(epoch), **{name: float(value) for name, value in metrics.items()}})
            del running.history[:-MOST_EPOCHS]
            if time.time() - self._written >= PAUSE:
                self._write()

    def succeeded(self, cell: Cell, result: CellResult | None) -> None:
        """Count a cell."""
        self._end(cell)

    def failed(self, cell: Cell, failure: Failure) -> None:
        """Count a cell, and say why it failed."""
        if self._now and len(self._now.failed) < MOST_ENDED:
            self._now.failed.append(FailedCell(cell.id, cell.title, failure.status, safe_to_show(failure.error, LONGEST)))
        self._end(cell)

    def retried(self, cell: Cell, error: RobustkdError, wait: float) -> None:
        """Note that a cell is tried again."""
        if self._now:
            self._now.running.pop(cell.id, None)
        self.noted(f"{cell.title}: {error.message}; again in {wait:g} s")

    def noted(self, text: str) -> None:
        """Note a remark about the run."""
        if self._now:
            self._now.note = safe_to_show(text, LONGEST)
            self._write()

    def extended(self, reasons: Sequence[str], todo: int) -> None:
        """Count the cells that have to be done beside the planned ones."""
        if self._now:
            self._now.total += todo
            self._write()

    def finished(self, results: Results) -> None:
        """Remove the file: results.json is written."""
        self.close()

    def close(self) -> None:
        """Remove the file; for a run that was stopped, too."""
        if self._now:
            self._now = None
            with suppress(OSError):
                (self._folder / PROGRESS).unlink(missing_ok=True)

    def _end(self, cell: Cell) -> None:
        if self._now:
            self._now.running.pop(cell.id, None)
            self._now.done += 1
            self._write()

    def _write(self) -> None:
        assert self._now is not None
        self._now.updated = self._written = time.time()
        file = self._folder / PROGRESS
        partial = file.with_name(f".{PROGRESS}.partial")
        with suppress(OSError):  # not flushed to the disk: after a crash nobody looks at it
            partial.write_bytes(_PROGRESS.dump_json(self._now))
            partial.replace(file)
