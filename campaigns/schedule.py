"""Which cell may run next: the dependency graph, apart from how cells are run."""

from __future__ import annotations

from collections.abc import Iterable

from robustkd.campaigns.cells import Cell


class Schedule:
    """Cells that become ready as others finish.

    Args:
        cells: what is to be done, in an order in which each comes after what it needs.
        finished: ids that are done already.
    """

    def __init__(self, cells: Iterable[Cell], finished: Iterable[str] = ()) -> None:
        self._settled = set(finished)
        self._failed: set[str] = set()
        self._waiting = {cell.id: cell for cell in cells if cell.id not in self._settled}

    @property
    def over(self) -> bool:
        """Whether nothing waits any more."""
        return not self._waiting

    def take(self) -> Cell | None:
        """The first cell whose needs are settled, removed from the waiting ones; None when all of them wait."""
        for cell in self._waiting.values():
            if all(need in self._settled for need in cell.needs):
                return self._waiting.pop(cell.id)
        return None

    def succeed(self, cell: Cell) -> None:
        """``cell`` is in the store."""
        self._settled.add(cell.id)

    def fail(self, cell: Cell) -> list[Cell]:
        """``cell`` will not be in the store. Returns the cells that can therefore not run either, now taken out.

        A checks cell needs its target and what attacks there are: a failed attack does not stop it.
        """
        self._settled.add(cell.id)
        self._failed.add(cell.id)
        blocked = []
        for waiting in list(self._waiting.values()):  # in order, so a blocked cell comes before those that need it
            required = waiting.needs[:1] if waiting.kind == "checks" else waiting.needs
            if any(need in self._failed for need in required):
                blocked.append(self._waiting.pop(waiting.id))
                self._settled.add(waiting.id)
                self._failed.add(waiting.id)
        return blocked
