"""The Dask cluster that cells are sent to: a scheduler that runs somewhere, this machine, or the jobs of a batch system."""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from robustkd.campaigns.execution.engines.local import default_workers
from robustkd.contracts import Params, UsageError
from robustkd.contracts.extras import installation

if TYPE_CHECKING:
    from distributed import Client

CONNECT_SECONDS = 20
"""How long a scheduler may take to answer for the first time."""
KEEP_SECONDS = 30
"""Seconds between two looks at whether jobs have ended and others are to be asked for."""
OF_THIS_MACHINE = "127.0.0.1:0"
"""Where Dask's HTTP servers listen, which it opens without a dashboard, too: for nobody else, and at any free port."""
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
    jobs: int = Field(1, ge=1, description="how many jobs are asked for, and kept up: one that has ended is asked for again")

    @property
    def keys(self) -> dict[str, Any]:
        """The keyword arguments of the cluster class of dask-jobqueue."""
        return self.model_extra or {}

    @property
    def sentence(self) -> str:
        """One sentence: what each job asks the batch system for."""
        keys = ", ".join(f"{name} {value}" for name, value in self.keys.items()) or "what the batch system gives by default"
        return f"{self.jobs} job{'s' if self.jobs > 1 else ''} of {self.kind}, each asks for: {keys}"


class DaskParams(Params):
    """The Dask cluster that the cells are sent to."""

    address: str | None = Field(None, description="of a running scheduler: tcp://host:8786")
    cluster: Cluster | None = Field(None, description="a batch system's jobs, through dask-jobqueue")
    workers: int | None = Field(None, ge=1, description="workers on this machine [default: one a core]")
    processes: bool = Field(True, description="false: its workers are threads of this process; cells are children all the same")
    resources: dict[str, float] = Field({}, description="Dask resources that a cell takes up, such as {GPU: 1}")
    scheduler_minutes: float = Field(
        10, gt=0, description="how long a scheduler at an address may be away before the run ends; what is finished is kept"
    )


class Jobs:
    """The jobs of a batch system.

    Attributes:
        refusals: what the batch system has said since ``keep`` was last called, instead of taking a job.
    """

    def __init__(self, wanted: Cluster) -> None:
        try:
            jobqueue = importlib.import_module("dask_jobqueue")
        except ImportError:
            raise UsageError("engine.cluster needs dask-jobqueue", fix="pip install dask-jobqueue") from None
        from distributed.deploy.spec import ProcessInterface

        make = getattr(jobqueue, JOBQUEUE[wanted.kind])
        self.refusals: list[str] = []
        self._wanted, self._asked = wanted, 0.0
        refusals = self.refusals

        class Job(make.job_cls):  # type: ignore[name-defined]
            """A job that notes why the batch system does not take it, where dask-jobqueue leaves it in a log and waits."""

            async def start(self) -> None:
                try:
                    await super().start()
                except (OSError, RuntimeError, ValueError) as error:
                    self.job_id = None
                    refusals.append(_words(error))
                    await ProcessInterface.start(self)

        # The dashboard would be open to everybody in the network.
        options = {"dashboard": False, "dashboard_address": OF_THIS_MACHINE} | wanted.keys.get("scheduler_options", {})
        try:
            self.cluster = make(job_cls=Job, **wanted.keys | {"scheduler_options": options})
        except (TypeError, ValueError) as error:
            raise UsageError(f"dask-jobqueue does not take engine.cluster: {error}", fix="correct the profile") from error

    def keep(self) -> None:
        """Ask for as many jobs as are wanted: at first, and for those that have ended, such as at their walltime."""
        if time.monotonic() - self._asked >= KEEP_SECONDS:
            self._asked = time.monotonic()
            self.refusals.clear()
            self.cluster.sync(self._forget_refused)
            self.cluster.scale(jobs=self._wanted.jobs)

    async def _forget_refused(self) -> None:
        for name in [name for name, job in self.cluster.workers.items() if job.job_id is None]:
            del self.cluster.workers[name]


@contextmanager
def connected(params: DaskParams, device: str) -> Iterator[tuple[Client, Jobs | None]]:
    """A client of the cluster, and its jobs where it is one of a batch system.

    Raises:
        UsageError: nothing answers at the address, or a package is missing.
    """
    try:
        import distributed
    except ImportError:
        raise UsageError("the engine 'dask' needs Dask", fix=installation("dask")) from None
    # What it logs of a scheduler that is away, tracebacks among it, the engine says in a sentence.
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
    if params.address:
        try:
            distributed.Client(params.address, timeout=CONNECT_SECONDS, set_as_default=False).close()
            # From now on it may be away for longer.
            client = distributed.Client(params.address, timeout=60 * params.scheduler_minutes)
        except (OSError, ValueError) as error:
            raise UsageError(f"no Dask scheduler answers at {params.address}: {error}", fix="correct engine.address") from error
        with client:
            yield client, None
        return
    jobs = Jobs(params.cluster) if params.cluster else None
    with jobs.cluster if jobs else _on_this_machine(params, device) as cluster, distributed.Client(cluster) as client:
        yield client, jobs


def _on_this_machine(params: DaskParams, device: str) -> Any:
    from distributed import LocalCluster

    return LocalCluster(
        n_workers=params.workers or default_workers([device]),
        threads_per_worker=1,
        processes=params.processes,
        memory_limit=0,  # the memory is the children's, which Dask does not see
        dashboard_address=OF_THIS_MACHINE,
        worker_dashboard_address=OF_THIS_MACHINE,
        scheduler_kwargs={"dashboard": False},
        silence_logs=logging.ERROR,
    )


def _words(error: Exception) -> str:
    """What the batch system's command said, of all that dask-jobqueue tells."""
    said = str(error).rpartition("stderr:\n")[2].strip()
    return " ".join(said.split())
