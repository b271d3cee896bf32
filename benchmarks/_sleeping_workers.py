"""Dask workers of one process, for ``cluster.py``: each sleeps as long as a cell should take, and then does the cell here.

python _sleeping_workers.py SCHEDULER_FILE WORKERS SECONDS
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import dask
from distributed import Worker as DaskWorker

from robustkd.campaigns.execution.engines import dask_task
from robustkd.campaigns.execution.job import Job
from robustkd.campaigns.execution.worker import Worker
from robustkd.campaigns.plan.cells import Cell


class Sleeping:
    """What stands in the place of a cell's child."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self._lock = seconds, threading.Lock()
        self._worker: Worker | None = None
        self._spans = Path(f"{os.getpid()}.spans").open("w")  # noqa: SIM115

    def __call__(self, job: Job, cell: Cell, hours: float | None, topic: str, worker: Any) -> tuple[str, Any]:
        """Do a cell, slowly."""
        began = time.time()
        time.sleep(self.seconds)
        with self._lock:
            self._worker = self._worker or Worker(job)
            self._worker.run(cell)
            print(json.dumps([worker.address, began, time.time()]), file=self._spans, flush=True)
        return "done", None


async def work(scheduler_file: str, workers: int) -> None:
    """Serve until this process is killed."""
    serving = [DaskWorker(scheduler_file=scheduler_file, nthreads=1, memory_limit=0, dashboard=False) for _ in range(workers)]
    await asyncio.gather(*serving)
    Path(f"{os.getpid()}.ready").touch()
    await asyncio.gather(*(worker.finished() for worker in serving))


if __name__ == "__main__":
    # What each worker measures of itself many times a second would be most of the work of so many on one machine.
    dask.config.set({"distributed.worker.profile.enabled": False, "distributed.admin.system-monitor.interval": "10s"})
    file, count, seconds = sys.argv[1:]
    dask_task._in_child = Sleeping(float(seconds))  # type: ignore[assignment]
    asyncio.run(work(file, int(count)))
