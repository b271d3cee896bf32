"""The course of a campaign as events, for whoever runs one from Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from robustkd.campaigns.execution.run import Observer
from robustkd.campaigns.plan.cells import AttackCell, Cell
from robustkd.campaigns.plan.plan import Plan
from robustkd.campaigns.results.failure import Failure
from robustkd.contracts import RobustkdError
from robustkd.scoring.results import CellResult, Results

Event = Literal["planned", "started", "epoch", "done", "failed", "retried", "extended", "finished"]


@dataclass(frozen=True)
class Progress:
    """Something that happened during ``robustkd.run``; as text it is one line, so that ``progress=print`` shows a run.

    Attributes:
        event: the run was ``planned`` or is ``finished``, or turned out to need more cells (``extended``); a cell has ``started``,
            is ``done``, has ``failed`` or will be ``retried``; a training has ended an ``epoch``.
        done, total: cells that ended in this run, and that have to be done in it.
        cell: what the cell is; empty where the event is the run's own. Its ``defense``, ``attack`` (None of a training) and ``seed``.
        robust_accuracy: of an attack that is done.
        epoch, metrics: of a training, from 0; what it logged.
        text: what happened, in words.
    """

    event: Event
    done: int
    total: int
    text: str
    cell: str = ""
    defense: str | None = None
    attack: str | None = None
    seed: int | None = None
    robust_accuracy: float | None = None
    epoch: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"[{self.done}/{self.total}] {f'{self.cell}: ' if self.cell else ''}{self.text}"


def progress_observer(tell: Callable[[Progress], object]) -> Observer:
    """An observer that calls ``tell`` with each event."""
    return _ProgressObserver(tell)


class _ProgressObserver(Observer):
    def __init__(self, tell: Callable[[Progress], object]) -> None:
        self._tell = tell
        self._done = self._total = 0

    def planned(self, plan: Plan, finished: int, todo: int) -> None:
        self._total = todo
        self._say("planned", f"{plan.campaign.name}: {todo} cells to do, {finished} finished before")

    def started(self, cell: Cell) -> None:
        self._say("started", "started", cell)

    def progressed(self, cell: Cell, epoch: int, metrics: Mapping[str, float]) -> None:
        self._say("epoch", f"epoch {epoch + 1}", cell, epoch=epoch, metrics=metrics)

    def succeeded(self, cell: Cell, result: CellResult | None) -> None:
        self._done += 1
        number = result.robust_accuracy if result else None
        self._say("done", "done" if number is None else f"robust accuracy {number:.1%}", cell, number=number)

    def failed(self, cell: Cell, failure: Failure) -> None:
        self._done += 1
        self._say("failed", f"{failure.status}: {failure.error.splitlines()[0]}", cell)

    def retried(self, cell: Cell, error: RobustkdError, wait: float) -> None:
        self._say("retried", f"{error.message.splitlines()[0]}; again in {wait:g} s", cell)

    def extended(self, reasons: Sequence[str], todo: int) -> None:
        self._total += todo
        self._say("extended", f"{todo} more cells to do: {'; '.join(reasons[:3])}")

    def finished(self, results: Results) -> None:
        self._say("finished", "incomplete" if results.incomplete else "finished")

    def _say(
        self,
        event: Event,
        text: str,
        cell: Cell | None = None,
        *,
        number: float | None = None,
        epoch: int | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        self._tell(
            Progress(
                event,
                self._done,
                self._total,
                text,
                cell=cell.title if cell else "",
                defense=cell.defense if cell else None,
                attack=cell.attack if isinstance(cell, AttackCell) else None,
                seed=cell.seed if cell else None,
                robust_accuracy=number,
                epoch=epoch,
                metrics=metrics or {},
            )
        )
