"""Cells on a Dask cluster: on this machine, at an address, or of a batch system's jobs (Slurm, PBS).

Dask brings cells to its workers and says what became of them; ``dask_task`` is what a worker does. Results go through the
store, which all workers must see under the same path.
"""

from __future__ import annotations

import importlib
import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from robustkd.campaigns.execution.engines import Engine, Listener
from robustkd.campaigns.execution.engines.dask_task import dismiss_children, run_cell
from robustkd.campaigns.execution.engines.local import default_workers
from robustkd.campaigns.execution.errors import CellLost, EngineLost, WorkerUnfit
from robustkd.campaigns.execution.job import Job
from robustkd.campaigns.execution.schedule import Schedule
from robustkd.campaigns.plan.cells import Cell
from robustkd.contracts import IdentityError, Params, UsageError

if TYPE_CHECKING:
    from distributed import Client, Future

POLL_SECONDS = 0.5
"""Seconds between two looks at the clock and at how many workers there are."""
UNFIT_AFTER = 2
"""Cells that a worker cannot do as they were planned, after which it is given none."""
JOBQUEUE = {
    "slurm": "SLURMCluster",
    "pbs": "PBSCluster",
    "sge": "SGECluster",
    "lsf": "LSFCluster",
    "htcondor": "HTCondorCluster",
}


class Cluster(BaseModel):
    """A batch system; further keys go to dask-jobqueue's cluster as they are (queue, cores, memory, walltime, ..)."""

    model_config = ConfigDict(extra="allow", frozen=True)
    kind: Literal["slurm", "pbs", "sge", "lsf", "htcondor"]
    jobs: int = Field(1, ge=1, description="how many jobs are asked for")


@dataclass(frozen=True)
class _Ended:
    future: Future[Any]


@dataclass(frozen=True)
class _Progress:
    cell_id: str
    epoch: int
    metrics: dict[str, float]


class DaskParams(Params):
    """The Dask cluster that the cells are sent to."""

    address: str | None = Field(None, description="of a running scheduler: tcp://host:8786")
    cluster: Cluster | None = Field(None, description="a batch system's jobs, through dask-jobqueue")
    workers: int | None = Field(None, ge=1, description="workers on this machine [default: one a core]")
    processes: bool = Field(True, description="false: its workers are threads of this process; cells are children all the same")
    resources: dict[str, float] = Field({}, description="Dask resources that a cell takes up, such as {GPU: 1}")


class DaskEngine(Engine):
    """A Dask cluster; without ``address`` and ``cluster`` one of this machine that lasts as long as the run.

    A worker that cannot do a cell as it was planned (another version of a plug-in, other data, no such folder) is not asked for that cell
    again, and after ``UNFIT_AFTER`` such cells for none; they go to other workers while there are any.
    """

    Params = DaskParams

    def run(self, job: Job, schedule: Schedule, listener: Listener) -> None:
        """Run every cell of ``schedule``.

        Raises:
            EngineLost: the scheduler is gone.
        """
        self.only_device(job)
        topic = f"robustkd-{uuid.uuid4().hex}"
        news: SimpleQueue[_Ended | _Progress] = SimpleQueue()
        running: dict[Future[Any], Cell] = {}
        with _probe(Path(job.store)) as probe, _client(self.params, job.device) as client:
            workers = _Workers(client)
            client.subscribe_topic(topic, lambda event: news.put(_Progress(*event[1])))
            try:
                while True:
                    workers.look()
                    # One more than none: cells may wait for the first worker, as it may wait for its batch system.
                    while len(running) < max(1, workers.threads) and (cell := self.next_cell(schedule)):
                        future = client.submit(
                            run_cell,
                            job,
                            cell,
                            self.limits.cell_hours,
                            topic,
                            str(probe),
                            key=f"{cell.title} {uuid.uuid4().hex}",
                            resources=self.params.resources or None,
                            workers=workers.fit(cell) or None,
                            allow_other_workers=True,  # where those that are fit have gone
                            pure=False,
                        )
                        running[future] = cell
                        future.add_done_callback(lambda ended: news.put(_Ended(ended)))
                        listener.started(cell)
                    pause = schedule.pause()
                    if self.out_of_time or not (running or pause is not None):
                        return
                    try:
                        readable = news.get(timeout=POLL_SECONDS if pause is None else min(POLL_SECONDS, pause))
                    except Empty:
                        continue
                    if isinstance(readable, _Ended):
                        self._ended(running.pop(readable.future), readable.future, workers, schedule, listener)
                    elif cell := next((cell for cell in running.values() if cell.id == readable.cell_id), None):
                        listener.progressed(cell, readable.epoch, readable.metrics)
            finally:
                if client.status == "running":
                    client.cancel(list(running))  # the workers see it, and stop their children
                    client.run(dismiss_children, job, on_error="ignore")

    def _ended(self, cell: Cell, future: Future[Any], workers: _Workers, schedule: Schedule, listener: Listener) -> None:
        """Book what became of a cell. One that a worker could not do goes back to the schedule while another may."""
        if future.status != "finished":
            why = future.exception() if future.status == "error" else future.status
            self.failed(cell, CellLost(f"its Dask worker was lost: {why}"), schedule, listener)
            return
        outcome, error, worker = future.result()
        if isinstance(error, WorkerUnfit | IdentityError):
            workers.refused(cell, worker)
            if workers.fit(cell):
                schedule.again(cell, 0)
                return
            error = type(error)(f"worker {worker}: {error.message}", fix=error.fix)
        if outcome == "done":
            schedule.succeed(cell)
            listener.succeeded(cell)
        else:
            self.failed(cell, error if outcome == "failed" else self.too_long(), schedule, listener)


class _Workers:
    """The workers that are there, and which cells they could not do."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._threads: dict[str, int] = {}
        self._refused: dict[str, set[str]] = {}

    def look(self) -> None:
        """Ask the scheduler which there are.

        Raises:
            EngineLost: it is gone.
        """
        try:
            if self._client.status == "closed":
                raise ConnectionError("the connection is closed")
            self._threads = dict(self._client.nthreads())
        except OSError as error:
            raise EngineLost(
                f"the Dask scheduler is gone: {error}", fix="start it and run again: what is finished is kept"
            ) from error

    @property
    def threads(self) -> int:
        """How many cells they work on at a time."""
        return sum(self._threads[worker] for worker in self._useful())

    def refused(self, cell: Cell, worker: str) -> None:
        """A worker cannot do a cell."""
        self._refused.setdefault(worker, set()).add(cell.id)

    def fit(self, cell: Cell) -> list[str]:
        """Those that may do a cell; none where there are no workers yet."""
        return [worker for worker in self._useful() if cell.id not in self._refused.get(worker, ())]

    def _useful(self) -> list[str]:
        return [worker for worker in self._threads if len(self._refused.get(worker, ())) < UNFIT_AFTER]


@contextmanager
def _probe(folder: Path) -> Iterator[Path]:
    """A file in the results folder by which a worker knows that it sees this very folder."""
    file = folder / f".probe-{uuid.uuid4().hex}"
    file.touch()
    try:
        yield file
    finally:
        file.unlink(missing_ok=True)


@contextmanager
def _client(params: Any, device: str) -> Iterator[Client]:
    try:
        import distributed
    except ImportError:
        raise UsageError("the engine 'dask' needs Dask", fix="pip install 'robustkd[dask]'") from None
    if params.address:
        try:
            client = distributed.Client(params.address, timeout="20s")
        except (OSError, ValueError) as error:
            raise UsageError(f"no Dask scheduler answers at {params.address}: {error}", fix="correct engine.address") from error
        with client:
            yield client
        return
    with _cluster(params, device) as cluster, distributed.Client(cluster) as client:
        yield client


def _cluster(params: Any, device: str) -> Any:
    if params.cluster is None:
        from distributed import LocalCluster

        return LocalCluster(
            n_workers=params.workers or default_workers([device]),
            threads_per_worker=1,
            processes=params.processes,
            memory_limit=0,  # the memory is the children's, which Dask does not see
            dashboard_address=None,
            silence_logs=logging.ERROR,
        )
    try:
        jobqueue = importlib.import_module("dask_jobqueue")
    except ImportError:
        raise UsageError("engine.cluster needs dask-jobqueue", fix="pip install dask-jobqueue") from None
    cluster = getattr(jobqueue, JOBQUEUE[params.cluster.kind])(**(params.cluster.model_extra or {}))
    cluster.scale(jobs=params.cluster.jobs)
    return cluster
