"""Cells on a Dask cluster: on this machine, at an address, or of a batch system's jobs (Slurm, PBS).

Dask brings cells to its workers and says what became of them; ``dask_task`` is what a worker does. Results go through the
store, which all workers must see under the same path.
"""

from __future__ import annotations

import time
import uuid
from asyncio import CancelledError
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from robustkd.campaigns.execution.engines import Engine, Listener
from robustkd.campaigns.execution.engines.dask_cluster import DaskParams, connected
from robustkd.campaigns.execution.engines.dask_task import dismiss_children, run_cell
from robustkd.campaigns.execution.engines.dask_workers import Workers
from robustkd.campaigns.execution.errors import CellLost, WorkerUnfit
from robustkd.campaigns.execution.job import Job
from robustkd.campaigns.execution.schedule import Schedule
from robustkd.campaigns.plan.cells import Cell
from robustkd.campaigns.store.store import Store
from robustkd.contracts import IdentityError

if TYPE_CHECKING:
    from distributed import Client, Future

POLL_SECONDS = 0.5
"""Seconds between two looks at the clock and at how many workers there are."""


@dataclass(frozen=True)
class _Running:
    """A cell and the workers that may do it."""

    cell: Cell
    workers: list[str]


@dataclass(frozen=True)
class _Ended:
    future: Future[Any]


@dataclass(frozen=True)
class _Progress:
    cell_id: str
    epoch: int
    metrics: dict[str, float]


class DaskEngine(Engine):
    """A Dask cluster; without ``address`` and ``cluster`` one of this machine that lasts as long as the run.

    A worker with another version of robustkd or torch gets no cell. One that cannot do a cell as it was planned (another version of a
    plug-in, other data, no such folder) is not asked for that cell again, and after ``UNFIT_AFTER`` such cells for none; they go to
    other workers while there are any.
    """

    Params = DaskParams

    @property
    def asks_for(self) -> str | None:
        """What each job of the batch system asks for."""
        return self.params.cluster.sentence if self.params.cluster else None

    def run(self, job: Job, schedule: Schedule, listener: Listener) -> None:
        """Run every cell of ``schedule``.

        Raises:
            EngineLost: the scheduler is gone, or no worker can do the cells.
        """
        self.only_device(job)
        topic = f"robustkd-{uuid.uuid4().hex}"
        news: SimpleQueue[_Ended | _Progress] = SimpleQueue()
        running: dict[Future[Any], _Running] = {}
        store = Store(Path(job.store))
        begun: set[str] = set()
        with _probe(Path(job.store)) as probe, connected(self.params, job.device) as (client, jobs):
            workers = Workers(client, jobs, self.params.scheduler_minutes, listener.noted)
            client.subscribe_topic(topic, lambda event: news.put(_Progress(*event[1])))
            answers, looked = False, 0.0
            done: list[Cell] = []

            def begin() -> None:
                while len(running) < workers.threads and (cell := self.next_cell(schedule)):
                    if cell.id in begun and store.path(cell.id).is_dir():  # it was lost after it had ended
                        schedule.succeed(cell)
                        done.append(cell)
                        continue
                    one = _Running(cell, workers.fit(cell))
                    future = self._submit(client, (job, cell, self.limits.cell_hours, topic, str(probe)), one)
                    running[future] = one
                    begun.add(cell.id)
                    future.add_done_callback(lambda ended: news.put(_Ended(ended)))
                    listener.started(cell)

            def hear(item: _Ended | _Progress) -> None:
                if isinstance(item, _Ended):
                    ended = running.pop(item.future, None)
                    if ended and self._ended(ended.cell, item.future, workers, schedule, listener):
                        done.append(ended.cell)
                elif cell := next((one.cell for one in running.values() if one.cell.id == item.cell_id), None):
                    listener.progressed(cell, item.epoch, item.metrics)

            try:
                while True:
                    # The answer comes from the scheduler, which has other things to do: not after each cell.
                    if not answers or time.monotonic() - looked >= POLL_SECONDS:
                        answers, looked = workers.look(), time.monotonic()
                        for future in _abandoned(running, workers) if answers else ():
                            client.cancel([future])
                            self._lost(running.pop(future).cell, "it is gone", schedule, listener)
                    if answers and client.status == "running":
                        begin()
                    # The next cells have begun before anybody is told of these, which takes as long as a small cell does.
                    for cell in done:
                        listener.succeeded(cell)
                    done.clear()
                    pause = schedule.pause()
                    waits = pause is not None or (schedule.left and not (answers and workers.threads))
                    if self.out_of_time or not (running or waits):
                        return
                    for item in _news_of(news, POLL_SECONDS if pause is None else min(POLL_SECONDS, pause)):
                        hear(item)
            finally:
                if answers:
                    _dismiss(client, job)

    def _submit(self, client: Client, task: tuple[Any, ...], one: _Running) -> Future[Any]:
        key = f"{one.cell.title} {uuid.uuid4().hex}"
        resources = self.params.resources or None
        return client.submit(run_cell, *task, key=key, resources=resources, workers=one.workers, pure=False)

    def _lost(self, cell: Cell, why: object, schedule: Schedule, listener: Listener) -> None:
        self.failed(cell, CellLost(f"its Dask worker was lost: {why}"), schedule, listener)

    def _ended(self, cell: Cell, future: Future[Any], workers: Workers, schedule: Schedule, listener: Listener) -> bool:
        """Book what became of a cell; whether it is in the store, which the listener has yet to be told.

        One that a worker could not do goes back to the schedule while another may, and one of which nobody can say what became of it,
        because the scheduler has gone, too.
        """
        if future.status == "cancelled":
            schedule.again(cell, 0)
            return False
        if future.status != "finished":
            self._lost(cell, future.exception() if future.status == "error" else future.status, schedule, listener)
            return False
        try:
            outcome, error, worker = future.result()
        except (OSError, RuntimeError, CancelledError):
            schedule.again(cell, 0)
            return False
        if isinstance(error, WorkerUnfit | IdentityError):
            workers.refused(cell, worker, error.message)
            if workers.fit(cell):
                schedule.again(cell, 0)
                return False
            error = type(error)(f"worker {worker}: {error.message}", fix=error.fix)
        if outcome == "done":
            schedule.succeed(cell)
            return True
        self.failed(cell, error if outcome == "failed" else self.too_long(), schedule, listener)
        return False


def _news_of(queue: SimpleQueue[_Ended | _Progress], seconds: float) -> Iterator[_Ended | _Progress]:
    """All that there is by now; where that is nothing, what comes within so many seconds."""
    try:
        yield queue.get(timeout=seconds)
        while True:
            yield queue.get_nowait()
    except Empty:
        return


def _abandoned(running: Mapping[Future[Any], _Running], workers: Workers) -> list[Future[Any]]:
    """The tasks whose workers have all gone."""
    return [future for future, one in running.items() if workers.gone(one.workers)]


def _dismiss(client: Client, job: Job) -> None:
    """End the workers' idle children. Those that work on a cell end when the client closes."""
    if client.status == "running":
        with suppress(OSError, TimeoutError):  # the scheduler went away just now
            client.run(dismiss_children, job, on_error="ignore")


@contextmanager
def _probe(folder: Path) -> Iterator[Path]:
    """A file in the results folder by which a worker knows that it sees this very folder."""
    file = folder / f".probe-{uuid.uuid4().hex}"
    file.touch()
    try:
        yield file
    finally:
        file.unlink(missing_ok=True)
