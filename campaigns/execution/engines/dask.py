"""Cells on a Dask cluster: on this machine, at an address, or of a batch system's jobs (Slurm, PBS).

Dask brings cells to its workers and says what became of them; ``dask_task`` is what a worker does. Results go through the
store, which all workers must see under the same path.
"""

from __future__ import annotations

import time
import uuid
from asyncio import CancelledError
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from robustkd.campaigns.execution.engines import Engine, Listener
from robustkd.campaigns.execution.engines.dask_cluster import DaskParams, connected
from robustkd.campaigns.execution.engines.dask_task import dismiss_children, run_cell
from robustkd.campaigns.execution.engines.dask_workers import ANSWER_SECONDS, Workers
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
TELL_SECONDS = 0.05
"""How long listeners are told of ended cells before the workers that have become free meanwhile get their next ones."""


@dataclass(frozen=True)
class _Running:
    """A cell and the workers that may do it."""

    cell: Cell
    workers: list[str]


@dataclass(frozen=True)
class _Ended:
    """A task that is over, with what ``run_cell`` returned; None where that could not be had."""

    future: Future[Any]
    returned: tuple[str, Any, str] | None


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
    def on_this_machine(self) -> bool:
        """Without an address and a batch system."""
        return not (self.params.address or self.params.cluster)

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
        with _probe(Path(job.store)) as probe, connected(self.params, job.device) as (client, jobs):
            workers = Workers(client, jobs, self.params.scheduler_minutes, listener.noted)
            try:
                _Course(self, job, str(probe), client, workers, schedule, listener).run()
            finally:
                _dismiss(client, job)


class _Course:
    """One run of the engine on a cluster: which cells are where, and what became of them."""

    def __init__(
        self, engine: DaskEngine, job: Job, probe: str, client: Client, workers: Workers, schedule: Schedule, listener: Listener
    ) -> None:
        self._answers = False
        self._engine, self._job, self._probe, self._client = engine, job, probe, client
        self._workers, self._schedule, self._listener = workers, schedule, listener
        self._store = Store(Path(job.store))
        self._topic = f"robustkd-{uuid.uuid4().hex}"
        self._news: SimpleQueue[_Ended | _Progress] = SimpleQueue()
        self._running: dict[Future[Any], _Running] = {}
        self._begun: set[str] = set()
        self._done: deque[Cell] = deque()
        self._looked = 0.0
        client.subscribe_topic(self._topic, lambda event: self._news.put(_Progress(*event[1])))

    def run(self) -> None:
        """Until the schedule is over, or the time is.

        Raises:
            EngineLost: as for ``DaskEngine.run``.
        """
        try:
            self._until_over()
        finally:
            while self._done:
                self._tell()

    def _until_over(self) -> None:
        while True:
            self._look()
            if self._answers and self._client.status == "running":
                self._begin()
            self._tell()
            pause = self._schedule.pause()
            waits = pause is not None or (self._schedule.left and not (self._answers and self._workers.threads))
            if self._engine.out_of_time or not (self._running or waits):
                return
            for item in _news_of(self._news, 0 if self._done else min(POLL_SECONDS, POLL_SECONDS if pause is None else pause)):
                self._hear(item)

    def _tell(self) -> None:
        """Tell of cells that have ended, for a moment. A listener may take as long as a small cell does, or wait for a server."""
        began = time.monotonic()
        while self._done and time.monotonic() - began < TELL_SECONDS:
            self._listener.succeeded(self._done.popleft())

    def _look(self) -> None:
        """See which workers there are. The answer comes from the scheduler, which has other things to do: not after each cell."""
        if self._answers and time.monotonic() - self._looked < POLL_SECONDS:
            return
        self._answers, self._looked = self._workers.look(), time.monotonic()
        for future in _abandoned(self._running, self._workers) if self._answers else ():
            self._client.cancel([future])
            self._lost(self._running.pop(future).cell, "it is gone")

    def _begin(self) -> None:
        """Give each worker that has none a cell."""
        while len(self._running) < self._workers.threads and (cell := self._engine.next_cell(self._schedule)):
            if cell.id in self._begun and self._store.path(cell.id).is_dir():  # it was lost after it had ended
                self._schedule.succeed(cell)
                self._done.append(cell)
                continue
            one = _Running(cell, self._workers.fit(cell))
            future = self._submit(one)
            self._running[future] = one
            self._begun.add(cell.id)
            future.add_done_callback(self._fetch)
            self._listener.started(cell)

    def _hear(self, item: _Ended | _Progress) -> None:
        if isinstance(item, _Ended):
            ended = self._running.pop(item.future, None)
            if ended and self._ended(ended.cell, item.future, item.returned):
                self._done.append(ended.cell)
        elif cell := next((one.cell for one in self._running.values() if one.cell.id == item.cell_id), None):
            self._listener.progressed(cell, item.epoch, item.metrics)

    def _fetch(self, future: Future[Any]) -> None:
        """Bring what a task returned from its worker, beside those of all others: a slow or suspended worker holds up nobody."""

        async def fetched() -> None:
            returned = None
            with suppress(OSError, RuntimeError, CancelledError):
                returned = await future.result()
            self._news.put(_Ended(future, returned))

        if future.status == "finished" and (loop := self._client.loop):
            loop.add_callback(fetched)
        else:
            self._news.put(_Ended(future, None))

    def _submit(self, one: _Running) -> Future[Any]:
        task = (self._job, one.cell, self._engine.limits.cell_hours, self._topic, self._probe)
        key = f"{one.cell.title} {uuid.uuid4().hex}"
        resources = self._engine.params.resources or None
        return self._client.submit(run_cell, *task, key=key, resources=resources, workers=one.workers, pure=False)

    def _lost(self, cell: Cell, why: object) -> None:
        self._engine.failed(cell, CellLost(f"its Dask worker was lost: {why}"), self._schedule, self._listener)

    def _ended(self, cell: Cell, future: Future[Any], returned: tuple[str, Any, str] | None) -> bool:
        """Book what became of a cell; whether it is in the store, which the listener has yet to be told.

        One that a worker could not do goes back to the schedule while another may, and one of which nobody can say what became of it,
        because the scheduler has gone, too.
        """
        if returned is None and future.status not in ("cancelled", "finished"):
            self._lost(cell, future.exception() if future.status == "error" else future.status)
            return False
        if returned is None:
            self._schedule.again(cell, 0)
            return False
        outcome, error, worker = returned
        if isinstance(error, WorkerUnfit | IdentityError):
            self._workers.refused(cell, worker, error.message)
            if self._workers.fit(cell):
                self._schedule.again(cell, 0)
                return False
            error = type(error)(f"worker {worker}: {error.message}", fix=error.fix)
        if outcome == "done":
            self._schedule.succeed(cell)
            return True
        failure = error if outcome == "failed" else self._engine.too_long()
        self._engine.failed(cell, failure, self._schedule, self._listener)
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

    async def dismissed() -> None:
        await client.run(dismiss_children, job, on_error="ignore")

    if client.status == "running":
        with suppress(OSError, TimeoutError):  # the scheduler went away just now, or was suspended
            client.sync(dismissed, callback_timeout=ANSWER_SECONDS)


@contextmanager
def _probe(folder: Path) -> Iterator[Path]:
    """A file in the results folder by which a worker knows that it sees this very folder."""
    file = folder / f".probe-{uuid.uuid4().hex}"
    file.touch()
    try:
        yield file
    finally:
        file.unlink(missing_ok=True)
