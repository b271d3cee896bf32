"""Where cells run. An engine is a plug-in: it takes cells and a schedule, and reports each as it ends."""

from __future__ import annotations

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


class Engine(ABC):
    """Runs cells of a schedule until it is over."""

    @abstractmethod
    def run(self, job: Job, schedule: Schedule, listener: Listener) -> None:
        """Run every cell. A cell's failure is reported, not raised; ``KeyboardInterrupt`` stops the children and is raised."""
