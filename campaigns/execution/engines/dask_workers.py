"""Which workers of a Dask cluster are of use, and what a person should know of them."""

from __future__ import annotations

import asyncio
import time
from asyncio import CancelledError
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from typing import TYPE_CHECKING, Any

from robustkd.campaigns.execution.engines.dask_cluster import Jobs
from robustkd.campaigns.execution.errors import EngineLost
from robustkd.campaigns.plan.cells import Cell
from robustkd.contracts import UsageError

if TYPE_CHECKING:
    from distributed import Client, Future

UNFIT_AFTER = 2
"""Cells that a worker cannot do as they were planned, after which it is given none."""
ANSWER_SECONDS = 15
"""How long the scheduler, and the workers that are asked something, may take to answer; one that was suspended never does."""
EXAMINED_AT_ONCE = 50
"""Workers that are asked for their versions at a look: so many answer in time, and the first of a thousand work meanwhile."""
SILENCE_SECONDS = 30
"""How long nothing is said while there is no worker."""


class Workers:
    """The workers that are there, and which cells they could not do.

    Args:
        jobs: those that bring the workers, on a batch system.
        minutes: how long the scheduler may be away.
        say: takes what a person should know.
    """

    def __init__(self, client: Client, jobs: Jobs | None, minutes: float, say: Callable[[str], None]) -> None:
        self._client, self._jobs, self._minutes, self._say = client, jobs, minutes, say
        self._threads: dict[str, int] = {}
        self._refused: dict[str, set[str]] = {}
        self._unfit: dict[str, str] = {}
        self._known: set[str] = set()
        self._since = time.monotonic()
        self._told = False
        self._away = False
        self._heard = time.monotonic()
        self._call: Future[str] | None = None

    def look(self) -> bool:
        """Ask the scheduler which there are; whether it answers.

        Raises:
            EngineLost: it is gone, or none of the workers can do the campaign's cells.
            UsageError: the batch system takes no job.
        """
        if self._client.status == "connecting":
            self._wait_for_scheduler()
            return False
        try:
            self._threads = dict(self._answer(self._client.nthreads))
            self._heard = time.monotonic()
            new = (worker for worker in self._threads if worker not in self._known)
            self._examine(list(islice(new, EXAMINED_AT_ONCE)))
        except TimeoutError as error:  # its connection is open: it was suspended, or its machine is
            if time.monotonic() - self._heard > 60 * self._minutes:
                raise self._gone() from error
            self._wait_for_scheduler()
            return False
        except (Exception, CancelledError) as error:  # which one depends on how far the client has closed
            if self._client.status in ("closing", "closed"):
                raise self._gone() from error
            if not isinstance(error, OSError):
                raise
            return False  # the connection was lost just now
        if self._away:
            self._say("the Dask scheduler answers again")
            self._away = False
        if self._jobs:
            self._keep(self._jobs)
        self._wait_for_some()
        return True

    def _answer(self, ask: Callable[[], Any]) -> Any:
        """What one of the client's own questions is answered.

        Raises:
            TimeoutError: nothing.
        """

        async def asked() -> Any:
            return await ask()

        return self._client.sync(asked, callback_timeout=ANSWER_SECONDS)

    def _wait_for_scheduler(self) -> None:
        if not self._away:
            self._say(f"the Dask scheduler does not answer; waiting for it, {self._minutes:g} minutes at most")
        self._away = True

    def _gone(self) -> EngineLost:
        told = f"the Dask scheduler is gone: it did not answer for {self._minutes:g} minutes"
        return EngineLost(told, fix="start it and run again: what is finished is kept")

    def _versions(self, package: str, workers: list[str]) -> dict[str, Any]:
        """The version of a package on each worker, or the error that asking for it ended in.

        Raises:
            TimeoutError: none of them answers.
        """

        async def asked(some: list[str], seconds: float | None) -> dict[str, Any]:
            answers = self._client.run(version, package, workers=some, on_error="return")
            return dict(await asyncio.wait_for(answers, seconds))

        async def each() -> dict[str, Any]:
            single = (asked([worker], ANSWER_SECONDS) for worker in workers)
            answers = await asyncio.gather(*single, return_exceptions=True)
            return {
                worker: answer if isinstance(answer, BaseException) else answer[worker]
                for worker, answer in zip(workers, answers, strict=True)
            }

        try:
            return dict(self._answer(lambda: asked(workers, None)))
        except TimeoutError:
            if len(workers) == 1:
                raise
        found: dict[str, Any] = self._client.sync(each, callback_timeout=2 * ANSWER_SECONDS)
        if all(isinstance(answer, TimeoutError) for answer in found.values()):
            raise TimeoutError(f"none of {len(workers)} workers answers")
        return found

    def _examine(self, new: list[str]) -> None:
        """Refuse workers with another robustkd, or another torch's major version, before they get a cell: of many, some at a time.

        The question is the standard library's: a worker that has none of this can answer it.
        """
        for package, same in (("robustkd", str), ("torch", lambda found: found.partition(".")[0])):
            if not new:
                return
            here = version(package)
            answers = self._versions(package, new)
            for worker, found in answers.items():
                if isinstance(found, str) and same(found) == same(here):
                    continue
                has = f"{package} {found}" if isinstance(found, str) else f"no {package}"
                why = has if isinstance(found, str | PackageNotFoundError) else f"no answer ({found})"
                self._unfit.setdefault(worker, f"worker {worker} has {why}, the campaign was planned with {package} {here}")
        for worker in new:
            self._known.add(worker)
            if worker in self._unfit:
                self._say(f"{self._unfit[worker]}: it gets no cell")

    def _keep(self, jobs: Jobs) -> None:
        if jobs.refusals:
            refused = f"the batch system takes no job: {jobs.refusals[0]}"
            if not self._known:
                raise UsageError(refused, fix="correct engine.cluster of the profile")
            if not self._threads:
                raise EngineLost(refused, fix="run again when it takes jobs: what is finished is kept")
            if not self._told:
                self._say(refused)
                self._told = True
        jobs.keep()

    def _wait_for_some(self) -> None:
        if self._threads:
            self._since, self._call = time.monotonic(), None
            self._told = bool(self._told and self._jobs and self._jobs.refusals)
            if not self._useful() and self._known.issuperset(self._threads):
                known = "; ".join(self._unfit[worker] for worker in self._threads)
                raise EngineLost(f"no worker can do these cells: {known}", fix="let the workers have what the driver has")
            return
        if self._call is None:  # a cluster that grows when it is asked something is asked something
            self._call = self._client.submit(version, "robustkd", pure=False)
        if not self._told and time.monotonic() - self._since > SILENCE_SECONDS:
            self._told = True
            hint = (
                "the jobs wait in the batch system's queue, or ended before they could work (its logs say)"
                if self._jobs
                else ""
            )
            self._say("no Dask worker is there; waiting for one" + (f": {hint}" if hint else ""))

    @property
    def threads(self) -> int:
        """How many cells they work on at a time."""
        return sum(self._threads[worker] for worker in self._useful())

    def gone(self, workers: Iterable[str]) -> bool:
        """Whether none of these is there any more."""
        return self._threads.keys().isdisjoint(workers)

    def refused(self, cell: Cell, worker: str, why: str) -> None:
        """A worker cannot do a cell."""
        cells = self._refused.setdefault(worker, set())
        cells.add(cell.id)
        if len(cells) >= UNFIT_AFTER and worker not in self._unfit:
            self._unfit[worker] = f"worker {worker}: {why}"
            self._say(f"{self._unfit[worker]}; it gets no more cells")

    def fit(self, cell: Cell) -> list[str]:
        """Those that may do a cell."""
        return [worker for worker in self._useful() if cell.id not in self._refused.get(worker, ())]

    def _useful(self) -> list[str]:
        return [worker for worker in self._threads if worker in self._known and worker not in self._unfit]
