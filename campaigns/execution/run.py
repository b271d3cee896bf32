"""Plan -> Results: run what is not in the store yet, tell the observers, and write results.json."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from robustkd.campaigns.execution.engines import Engine
from robustkd.campaigns.execution.errors import EngineLost
from robustkd.campaigns.execution.job import Job
from robustkd.campaigns.execution.schedule import Schedule
from robustkd.campaigns.plan.cells import AttackCell, Cell, TrainCell
from robustkd.campaigns.plan.changes import reasons, remember
from robustkd.campaigns.plan.estimate import estimates
from robustkd.campaigns.plan.finished import finished_cells, rebuilt_cells
from robustkd.campaigns.plan.plan import Plan
from robustkd.campaigns.results.attack_result import attack_result
from robustkd.campaigns.results.collect import collect
from robustkd.campaigns.results.failure import Failure
from robustkd.campaigns.results.results_file import current, save
from robustkd.campaigns.store import samples
from robustkd.campaigns.store.durable import unwritable, write_text
from robustkd.campaigns.store.store import KEPT_BYTES, Store
from robustkd.contracts import AttackError, RobustkdError, StoreError, UsageError, suggestion
from robustkd.contracts.target import Precision
from robustkd.redaction import safe_to_show
from robustkd.scoring.results import CellResult, Results


class Observer:
    """Told what happens during a run; every method may be left as it is."""

    def planned(self, plan: Plan, finished: int, todo: int) -> None:
        """The run begins: so many distinct cells are in the store already, so many will be run."""

    def done_again(self, reasons: Sequence[str]) -> None:
        """Why cells that were finished once are among those that will be run."""

    def started(self, cell: Cell) -> None:
        """Called when a cell has begun."""

    def progressed(self, cell: Cell, epoch: int, metrics: Mapping[str, float]) -> None:
        """A training has finished an epoch."""

    def succeeded(self, cell: Cell, result: CellResult | None) -> None:
        """A cell is finished; ``result`` is the number of an attack cell."""

    def failed(self, cell: Cell, failure: Failure) -> None:
        """A cell ended without a result."""

    def retried(self, cell: Cell, error: RobustkdError, wait: float) -> None:
        """A cell ended without a result, and is tried again in ``wait`` seconds."""

    def noted(self, text: str) -> None:
        """Something about the run as a whole that a person should know, such as that it waits."""

    def extended(self, reasons: Sequence[str], todo: int) -> None:
        """So many more cells have to be done than was known when the run began, and why."""

    def finished(self, results: Results) -> None:
        """Everything that could be run has been run, and results.json is written."""


_NO_TIME = Failure("pending", "not run yet: max_hours left no time for it; running again goes on")


def run(
    plan: Plan,
    out: Path,
    engine: Engine,
    *,
    device: str = "auto",
    precision: Precision = "full",
    training_processes: int = 1,
    keep_bytes: int = KEPT_BYTES,
    batch_size: int | None = None,
    redo: Collection[str] = (),
    observers: Sequence[Observer] = (),
) -> Results:
    """Run a plan into the folder ``out``. What is finished there already is not done again.

    A target that somebody's own code builds is built anew in each run. Where it comes out different, what stands on it is done again.

    Args:
        redo: names of defenses, attacks and analyses whose cells are done again, with all that stands on them.
        precision: in which attacks take gradients.
        training_processes: how many processes share the training of one defense (``robustkd.campaigns.execution.torchrun``).
        keep_bytes: how much of the perturbed inputs an attack cell keeps, at most; no number depends on it.
        batch_size: the most samples that a model is attacked on at once; by default what the campaign says. No number depends on it,
            except that a model that draws random numbers draws others.

    Raises:
        StoreError: the folder cannot be written, or another run is using it. Where an observer alone could not write what it makes
            of the results, all observers were told of these before.
        KeyboardInterrupt: stopped; every finished cell is kept, and running again goes on.
    """
    store = Store(out)
    with store.exclusive_lock():
        store.prepare()
        write_text(out / "campaign.yaml", plan.campaign.text)
        distinct = {cell.id: cell for cell in plan.cells}
        for cell_id in cells_of(plan, redo):
            if store.path(cell_id).is_dir():
                store.remove(cell_id)
        driver = _Driver(plan, store, observers)
        finished = driver.finished()
        store.sweep(finished)
        again = reasons(plan, store, finished)
        remember(plan, out)
        driver.planned(len(finished), len(distinct) - len(finished), again)
        campaign = plan.campaign
        job = Job(
            campaign.text,
            campaign.origin,
            str(campaign.folder),
            str(out.resolve()),
            device,
            precision=precision,
            keep_bytes=keep_bytes,
            training_processes=training_processes,
            batch_size=batch_size or campaign.batch_size,
        )
        while not (engine.out_of_time or finished.union(driver.failures).issuperset(distinct)):
            before, done = driver.begun, finished
            try:
                engine.run(job, Schedule(distinct.values(), finished, _seconds(plan, store, finished, engine)), driver)
            except EngineLost as error:
                finished = driver.finished()
                lost = Failure("pending", f"not run yet: {error.message}; running again goes on")
                driver.failures.update(dict.fromkeys(distinct.keys() - finished - driver.failures.keys(), lost))
                break
            driver.block()
            # A target that was trained or built again and came out different makes finished cells stale: hence the loop.
            finished = driver.finished()
            if stale := done - finished:
                for observer in observers:
                    observer.extended(reasons(plan, store, finished), len(stale))
            if driver.begun == before:  # there is time, but for none of the cells that are left
                break
        store.sweep(finished)  # children that were stopped in the midst of writing
        results = current(plan, store) if finished.issuperset(distinct) else None
        if results is None:
            left = dict.fromkeys(distinct.keys() - finished, _NO_TIME) if engine.limits.max_hours is not None else {}
            results = collect(plan, store, left | driver.failures)
            save(results, plan, store)
        _tell_of_the_end(observers, results, out)
    return results


def _tell_of_the_end(observers: Sequence[Observer], results: Results, out: Path) -> None:
    """Tell every observer, also when an earlier one cannot write what it makes of the results.

    Raises:
        StoreError: the first of them that could not.
    """
    problems: list[StoreError] = []
    for observer in observers:
        try:
            observer.finished(results)
        except StoreError as error:
            problems.append(error)
        except OSError as error:
            problems.append(unwritable(out, error))
    if problems:
        raise problems[0]


def _seconds(plan: Plan, store: Store, finished: Collection[str], engine: Engine) -> dict[str, float]:
    """How long cells are known to take, where a run has an end: one that would not fit is not begun.

    One that fits into no run of this length is: it goes on from its shards or checkpoints next time.
    """
    if engine.limits.max_hours is None:
        return {}
    found = estimates(plan, store, finished)
    return {id_: one.seconds for id_, one in found.items() if one.seconds and one.seconds <= 3600 * engine.limits.max_hours}


def cells_of(plan: Plan, names: Collection[str]) -> list[str]:
    """Ids of the cells that belong to the defenses, attacks and analyses called ``names``, and of those that stand on them.

    Raises:
        UsageError: the campaign has none of that name.
    """
    campaign = plan.campaign
    for name in names:
        if name not in (known := {**campaign.defenses, **campaign.attacks, **campaign.analyses}):
            hint = suggestion(name, known)
            raise UsageError(f"--redo {name}: the campaign has no defense, attack or analysis of that name", fix=hint)
    found: dict[str, None] = {}
    for cell in plan.cells:  # each comes after what it needs
        own = cell.defense if isinstance(cell, TrainCell) else cell.plugin
        if own in names or any(need in found for need in cell.needs):
            found[cell.id] = None
    return list(found)


@dataclass
class _Driver:
    """Turns an engine's reports into what observers are told, and remembers failures."""

    plan: Plan
    store: Store
    observers: Sequence[Observer]
    failures: dict[str, Failure] = field(default_factory=dict)
    begun: int = 0
    done: set[str] = field(default_factory=set)

    def finished(self) -> set[str]:
        """Ids of the cells that need not be run any more; a target that is built anew in each run needs it once."""
        return finished_cells(self.plan, self.store, self.failures, self.done) - (rebuilt_cells(self.plan) - self.done)

    def planned(self, finished: int, todo: int, again: Sequence[str]) -> None:
        for observer in self.observers:
            observer.planned(self.plan, finished, todo)
            observer.done_again(again)
        for sentence in self.plan.campaign.may_change:
            self.noted(sentence)

    def block(self) -> None:
        """Note that cells which are in the store cannot be believed where what they stand on failed in this run."""
        for cell in self.plan.cells:
            if cell.id not in self.failures and (lost := next((need for need in cell.required if need in self.failures), None)):
                self.blocked(cell, next(by for by in self.plan.cells if by.id == lost))

    def started(self, cell: Cell) -> None:
        self.begun += 1
        for observer in self.observers:
            observer.started(cell)

    def progressed(self, cell: Cell, epoch: int, metrics: Mapping[str, float]) -> None:
        for observer in self.observers:
            observer.progressed(cell, epoch, metrics)

    def succeeded(self, cell: Cell) -> None:
        if not self.store.path(cell.id).is_dir():  # else it would be done again for ever
            told = f"its worker says that it is done, and {self.store.folder} does not hold it; do both see the same folder?"
            self._failed(cell, Failure("failed", told))
            return
        self.done.add(cell.id)
        result = None
        if isinstance(cell, AttackCell) and (entry := self.store.get(cell.id)):
            result = attack_result(self.plan, cell, entry, samples.read(entry))
        for observer in self.observers:
            observer.succeeded(cell, result)

    def failed(self, cell: Cell, error: RobustkdError) -> None:
        # A model's or a plug-in's own error may quote what it met: a URI, the environment.
        self._failed(cell, Failure("invalid" if isinstance(error, AttackError) else "failed", safe_to_show(str(error))))

    def retried(self, cell: Cell, error: RobustkdError, wait: float) -> None:
        error.message = safe_to_show(error.message)
        for observer in self.observers:
            observer.retried(cell, error, wait)

    def blocked(self, cell: Cell, by: Cell) -> None:
        self._failed(cell, Failure("blocked", f"needs '{by.title}', which failed"))

    def noted(self, text: str) -> None:
        for observer in self.observers:
            observer.noted(safe_to_show(text))

    def _failed(self, cell: Cell, failure: Failure) -> None:
        self.failures[cell.id] = failure
        for observer in self.observers:
            observer.failed(cell, failure)
