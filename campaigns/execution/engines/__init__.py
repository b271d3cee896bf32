"""Where cells run. An engine is a plug-in: it takes cells and a schedule, and reports each as it ends."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar, Protocol

from pydantic import Field

from robustkd.campaigns.execution.errors import CellLost, CellTimeout
from robustkd.campaigns.execution.job import Job
from robustkd.campaigns.execution.schedule import Schedule
from robustkd.campaigns.plan.cells import Cell
from robustkd.contracts import Params, RobustkdError, UsageError


class Listener(Protocol):
    """What an engine tells the driver, always from the driver's own thread."""

    def started(self, cell: Cell) -> None:
        """Called when an engine has given a cell to a worker."""

    def progressed(self, cell: Cell, epoch: int, metrics: Mapping[str, float]) -> None:
        """A training has finished an epoch."""

    def succeeded(self, cell: Cell) -> None:
        """A cell is in the store."""

    def failed(self, cell: Cell, error: RobustkdError) -> None:
        """A cell ended without a result."""

    def retried(self, cell: Cell, error: RobustkdError, wait: float) -> None:
        """A cell ended without a result, and is tried again in ``wait`` seconds."""

    def blocked(self, cell: Cell, by: Cell) -> None:
        """A cell cannot run, because one that it needs failed."""

    def noted(self, text: str) -> None:
        """Something about the run as a whole that a person should know, such as that it waits."""


class Limits(Params):
    """What a cell and a whole run may take, and how often a cell is tried. None of it changes a number."""

    retries: int = Field(2, ge=0, description="further tries of a cell whose process died or ran out of memory")
    retry_wait: float = Field(1.0, ge=0, description="seconds before the first of them, doubled for each further one")
    retry_timeouts: bool = Field(False, description="whether a cell that took too long is tried again, too")
    cell_hours: float | None = Field(None, gt=0, description="a cell that takes longer is stopped and has failed")
    max_hours: float | None = Field(None, gt=0, description="the run stops after so long; the next one goes on")


class Engine(ABC):
    """Runs cells of a schedule until it is over, or the time is.

    Args:
        params: where it runs them.
        limits: ``max_hours`` of it begin now.
    """

    Params: ClassVar[type[Params]] = Params

    def __init__(self, params: Any = None, limits: Limits | None = None) -> None:
        self.params: Any = self.Params() if params is None else params
        self.limits = limits or Limits()
        hours = self.limits.max_hours
        self._ends = None if hours is None else time.monotonic() + 3600 * hours
        self._tries: Counter[str] = Counter()

    @abstractmethod
    def run(self, job: Job, schedule: Schedule, listener: Listener) -> None:
        """Run every cell. A cell's failure is reported, not raised; ``KeyboardInterrupt`` stops the children and is raised.

        When the time is over it begins no further cell and returns; what has not ended then is reported in no way.
        """

    @property
    def on_this_machine(self) -> bool:
        """Whether cells run here alone, so that a device which is not here is of no use."""
        return False

    @property
    def asks_for(self) -> str | None:
        """What it asks a batch system for, in words; None where it asks none."""
        return None

    @property
    def seconds_left(self) -> float | None:
        """Until the end of ``max_hours``; None without one."""
        return None if self._ends is None else self._ends - time.monotonic()

    @property
    def out_of_time(self) -> bool:
        """Whether the run has taken ``max_hours``, so that no further cell is begun."""
        left = self.seconds_left
        return left is not None and left <= 0

    def next_cell(self, schedule: Schedule, loaded: Iterable[str] = (), elsewhere: Collection[str] = ()) -> Cell | None:
        """A cell to begin now, if there is one and time for it."""
        return None if self.out_of_time else schedule.take(loaded, elsewhere, self.seconds_left)

    def failed(self, cell: Cell, error: RobustkdError, schedule: Schedule, listener: Listener) -> None:
        """Book a cell that failed: for another try, or else with the ones that can therefore not run."""
        self._tries[cell.id] += 1
        again = isinstance(error, CellLost) or (isinstance(error, CellTimeout) and self.limits.retry_timeouts)
        if again and self._tries[cell.id] <= self.limits.retries:
            wait = self.limits.retry_wait * 2 ** (self._tries[cell.id] - 1)
            schedule.again(cell, wait)
            listener.retried(cell, error, wait)
            return
        listener.failed(cell, error)
        for waiting in schedule.fail(cell):
            listener.blocked(waiting, cell)

    def only_device(self, job: Job) -> str:
        """The device of a run whose engine uses one.

        Raises:
            UsageError: there are several.
        """
        if "," in job.device:
            raise UsageError(f"the devices {job.device} are several", fix="use the engine 'local', or name one device")
        return job.device

    def too_long(self) -> CellTimeout:
        """The failure of a cell that took longer than ``cell_hours``."""
        return CellTimeout(
            f"it took longer than the {self.limits.cell_hours:g} hours that a cell may take (limits.cell_hours)",
            fix="allow more in the profile; a training goes on from its last checkpoint",
        )
