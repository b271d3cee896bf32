"""What a running campaign shows: a live bar on a terminal, one plain line a finished cell elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import TextIO

from robustkd.campaigns.execution.run import Observer
from robustkd.campaigns.plan.cells import Cell
from robustkd.campaigns.plan.plan import Plan
from robustkd.campaigns.results.failure import Failure
from robustkd.cli.options import tell
from robustkd.contracts import RobustkdError
from robustkd.scoring.results import CellResult, Results

REASONS = 10
"""Why cells are done again: so many lines of it."""


def warn(text: str) -> None:
    """Say what a run goes on without."""
    tell(f"warning: {text}", stream=sys.stderr)


def follower(stream: TextIO) -> Observer:
    """The observer that fits ``stream``: a live display on a terminal, else lines."""
    return _Live(stream) if stream.isatty() else _Lines(stream)


class LastResults(Observer):
    """Keeps the results of a run that has ended.

    Attributes:
        results: None until then. They are there also when the record or the report could not be written.
    """

    def __init__(self) -> None:
        self.results: Results | None = None

    def finished(self, results: Results) -> None:
        """Keep them."""
        self.results = results


class _Lines(Observer):
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._done = self._todo = 0
        self._began = time.monotonic()
        self._reasons: set[str] = set()

    def planned(self, plan: Plan, finished: int, todo: int) -> None:
        self._todo = todo
        kept = f", {finished} finished before" if finished else ""
        self.say(f"{plan.campaign.name}: {todo} cells to do{kept}")

    def done_again(self, reasons: Sequence[str]) -> None:
        for reason in reasons[:REASONS]:
            self.say(f"again: {reason}")
        if len(reasons) > REASONS:
            self.say(f"again: {len(reasons) - REASONS} more reasons (robustkd plan lists them)")

    def extended(self, reasons: Sequence[str], todo: int) -> None:
        self._todo += todo
        self.done_again(reasons)

    def succeeded(self, cell: Cell, result: CellResult | None) -> None:
        number = f"   robust accuracy {result.robust_accuracy:.1%}" if result and result.robust_accuracy is not None else ""
        self._done += 1
        self.say(f"[{self._done}/{self._todo}] {cell.title}{number}")

    def failed(self, cell: Cell, failure: Failure) -> None:
        self._done += 1
        reason = failure.error.splitlines()[0]
        known, self._reasons = reason in self._reasons, {*self._reasons, reason}
        self.say(f"[{self._done}/{self._todo}] {cell.title}   {failure.status}: {'as before' if known else reason}")

    def retried(self, cell: Cell, error: RobustkdError, wait: float) -> None:
        self.say(f"{cell.title}   {error.message.splitlines()[0]}; again in {wait:g} s")

    def noted(self, text: str) -> None:
        self.say(text)

    def say(self, text: str) -> None:
        tell(text, stream=self._stream)


class _Live(_Lines):
    """The same lines above a bar with what is running now and the time that is left."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        super().__init__(stream)
        self._bar = Progress(
            # What is running is cut where there is no room for it, the total and the time that is left never.
            BarColumn(14),
            MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=7)),
            TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=7)),
            TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            console=Console(file=stream, highlight=False),
            transient=True,
            expand=True,
        )
        self._task = self._bar.add_task("", total=None)
        self._now: dict[str, str] = {}

    def planned(self, plan: Plan, finished: int, todo: int) -> None:
        super().planned(plan, finished, todo)
        if todo:
            self._bar.update(self._task, total=todo)
            self._bar.start()

    def extended(self, reasons: Sequence[str], todo: int) -> None:
        super().extended(reasons, todo)
        self._bar.update(self._task, total=self._todo)

    def started(self, cell: Cell) -> None:
        self._show(cell, cell.title)

    def progressed(self, cell: Cell, epoch: int, metrics: Mapping[str, float]) -> None:
        loss = next((value for name, value in metrics.items() if "loss" in name), None)
        self._show(cell, f"epoch {epoch + 1}{f', loss {loss:.3g}' if loss is not None else ''}: {cell.title}")

    def succeeded(self, cell: Cell, result: CellResult | None) -> None:
        super().succeeded(cell, result)
        self._end(cell)

    def failed(self, cell: Cell, failure: Failure) -> None:
        super().failed(cell, failure)
        self._end(cell)

    def retried(self, cell: Cell, error: RobustkdError, wait: float) -> None:
        super().retried(cell, error, wait)
        self._end(cell)

    def finished(self, results: Results) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        self._bar.console.print(text, markup=False)  # at whole words

    def _show(self, cell: Cell, text: str) -> None:
        self._now[cell.id] = text
        self._bar.update(self._task, description="; ".join(self._now.values()))

    def _end(self, cell: Cell) -> None:
        self._now.pop(cell.id, None)
        self._bar.update(self._task, completed=self._done, description="; ".join(self._now.values()))
