"""Cells in the driver's own process, one after the other: nothing to start, and a debugger reaches everything."""

from __future__ import annotations

from collections.abc import Mapping

from robustkd.campaigns.cells import Cell
from robustkd.campaigns.engines import CellCrash, Engine, Listener
from robustkd.campaigns.schedule import Schedule
from robustkd.campaigns.worker import Job, Worker
from robustkd.contracts import RobustkdError


class InlineEngine(Engine):
    """This process. A crash of a cell is a crash of the campaign (which then resumes)."""

    def run(self, job: Job, schedule: Schedule, listener: Listener) -> None:
        """Run every cell of ``schedule``."""

        def report(cell: Cell, epoch: int, metrics: Mapping[str, float]) -> None:
            listener.progressed(cell, epoch, metrics)

        worker = Worker(job, report)
        while (cell := schedule.take()) is not None:
            listener.started(cell)
            try:
                worker.run(cell)
            except Exception as error:
                self.failed(cell, error if isinstance(error, RobustkdError) else CellCrash.of(error), schedule, listener)
            else:
                self.succeeded(cell, schedule, listener)
