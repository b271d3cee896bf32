"""Cells in the driver's own process, one after the other: nothing to start, and a debugger reaches everything."""

from __future__ import annotations

import time
from collections.abc import Mapping

from typing_extensions import override

from robustkd.campaigns.execution.engines import Engine, Listener
from robustkd.campaigns.execution.errors import error_of
from robustkd.campaigns.execution.job import Job
from robustkd.campaigns.execution.schedule import Schedule
from robustkd.campaigns.execution.worker import Worker
from robustkd.campaigns.plan.cells import Cell


class InlineEngine(Engine):
    """This process. A crash of a cell is a crash of the campaign (which then resumes), and no time limit can stop a cell."""

    on_this_machine = True

    @override
    def run(self, job: Job, schedule: Schedule, listener: Listener) -> None:

        def report(cell: Cell, epoch: int, metrics: Mapping[str, float]) -> None:
            listener.progressed(cell, epoch, metrics)

        self.only_device(job)
        worker = Worker(job, report)
        while True:
            cell = self.next_cell(schedule)
            if cell is None:
                pause = schedule.pause()
                if pause is None or self.out_of_time:
                    return
                time.sleep(pause)
                continue
            listener.started(cell)
            try:
                worker.run(cell)
            except Exception as error:
                self.failed(cell, error_of(error), schedule, listener)
            else:
                schedule.succeed(cell)
                listener.succeeded(cell)
