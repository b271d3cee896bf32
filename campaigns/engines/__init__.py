"""Where cells run. An engine is a plug-in: it takes cells and a schedule, and reports each as it ends."""

from __future__ import annotations

import traceback
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Protocol

from robustkd.campaigns.cells import Cell
from robustkd.campaigns.schedule import Schedule
from robustkd.campaigns.worker import Job
from robustkd.contracts import RobustkdError


class Listener(Protocol):
    """What an engine tells the driver, always from the driver's own thread."""

    def started(self, cell: Cell) -> None:
        """A cell has begun."""

    def progressed(self, cell: Cell, epoch: int, metrics: Mapping[str, float]) -> None:
        """A training has finished an epoch."""

    def succeeded(self, cell: Cell) -> None:
        """A cell is in the store."""

    def failed(self, cell: Cell, error: RobustkdError) -> None:
        """A cell ended without a result."""

    def blocked(self, cell: Cell, by: Cell) -> None:
        """A cell cannot run, because one that it needs failed."""


class CellCrash(RobustkdError):
    """A cell ended by something nobody foresaw: a bug in a plug-in, or the death of its process."""

    @classmethod
    def of(cls, error: Exception) -> CellCrash:
        """The crash behind an exception that is not one of ours."""
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"
        return cls(text, fix="this is a bug in that plug-in or model, or in robustkd")


class Engine(ABC):
    """Runs cells of a schedule until it is over.

    Args:
        workers: how many at once, where the engine has more than one.
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers

    @abstractmethod
    def run(self, job: Job, schedule: Schedule, listener: Listener) -> None:
        """Run every cell. A cell's failure is reported, not raised; ``KeyboardInterrupt`` stops the children and is raised."""

    def succeeded(self, cell: Cell, schedule: Schedule, listener: Listener) -> None:
        """Book a cell that is in the store."""
        schedule.succeed(cell)
        listener.succeeded(cell)

    def failed(self, cell: Cell, error: RobustkdError, schedule: Schedule, listener: Listener) -> None:
        """Book a cell that failed, and the ones that can therefore not run."""
        listener.failed(cell, error)
        for waiting in schedule.fail(cell):
            listener.blocked(waiting, cell)
