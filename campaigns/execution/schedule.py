"""Which cell may run next: the dependency graph, apart from how cells are run."""

from __future__ import annotations

import heapq
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping

from robustkd.campaigns.plan.cells import Cell


class Schedule:
    """Cells that become ready as others finish. Taking one and settling one cost O(log n), whatever waits.

    Args:
        cells: what is to be done, in an order in which each comes after what it needs.
        finished: ids that are done already.
        seconds: how long cells are known to take, by id.
    """

    def __init__(self, cells: Iterable[Cell], finished: Iterable[str] = (), seconds: Mapping[str, float] | None = None) -> None:
        self._settled = set(finished)
        self._failed: set[str] = set()
        self._seconds = seconds or {}
        self._cells = [cell for cell in cells if cell.id not in self._settled]
        self._place = {cell.id: place for place, cell in enumerate(self._cells)}
        self._waiting: set[str] = set(self._place)
        self._dependents: dict[str, list[Cell]] = defaultdict(list)
        self._lacking: Counter[str] = Counter()
        # Places of ready cells, grouped by the target that they use, and the groups by their first place: entries of
        # ``_first`` whose group has another first place by now are stale, and dropped when they come up.
        self._ready: dict[str, list[int]] = defaultdict(list)
        self._first: list[tuple[int, str]] = []
        self._later: list[tuple[float, int]] = []
        for cell in self._cells:
            needs = set(cell.needs) - self._settled
            self._lacking[cell.id] = len(needs)
            for need in needs:
                self._dependents[need].append(cell)
            if not needs:
                self._make_ready(cell)

    def take(self, loaded: Iterable[str] = (), elsewhere: Collection[str] = (), within: float | None = None) -> Cell | None:
        """A cell whose needs are settled, no longer waiting; None when none is ready.

        The first in order of those on a target in ``loaded``; else of those on a target that nobody has loaded; else of all.

        Args:
            loaded: targets that the taker has in memory.
            elsewhere: targets that others have in memory.
            within: seconds that are left. A ready cell that is known to take longer is left out for good.
        """
        self._bring_back()
        while (cell := self._next(loaded, elsewhere)) is not None:
            if within is None or self._seconds.get(cell.id, 0.0) <= within:
                return cell
        return None

    def ready(self, targets: Iterable[str]) -> bool:
        """Whether a cell on one of ``targets`` could be taken."""
        return any(self._ready.get(target) for target in targets)

    @property
    def left(self) -> bool:
        """Whether there are cells that nobody has taken, ready or not."""
        return bool(self._waiting)

    def again(self, cell: Cell, wait: float) -> None:
        """``cell`` was taken and did not succeed; it is ready once more in ``wait`` seconds."""
        self._waiting.add(cell.id)
        heapq.heappush(self._later, (time.monotonic() + wait, self._place[cell.id]))

    def pause(self) -> float | None:
        """Seconds until a cell that waits for another try is ready; None when none waits."""
        return max(0.0, self._later[0][0] - time.monotonic()) if self._later else None

    def succeed(self, cell: Cell) -> None:
        """Note that ``cell`` is in the store, so that the cells that wait for it become ready."""
        self._settle(cell)

    def fail(self, cell: Cell) -> list[Cell]:
        """``cell`` will not be in the store. Returns the cells that can therefore not run either, now taken out.

        A checks cell needs its target and what attacks there are: a failed attack does not stop it.
        """
        self._failed.add(cell.id)
        blocked = []
        for place in sorted(self._place[item.id] for item in self._doomed(cell)):  # a blocked cell before those that need it
            item = self._cells[place]
            self._waiting.discard(item.id)
            self._failed.add(item.id)
            blocked.append(item)
        for item in (cell, *blocked):
            self._settle(item)
        return blocked

    def _doomed(self, cell: Cell) -> list[Cell]:
        """The waiting cells that cannot do without ``cell``, directly or not."""
        found, seen, open_ends = [], {cell.id}, [cell]
        while open_ends:
            lost = open_ends.pop()
            for item in self._dependents.get(lost.id, ()):
                if lost.id in item.required and item.id in self._waiting and item.id not in seen:
                    seen.add(item.id)
                    found.append(item)
                    open_ends.append(item)
        return found

    def _settle(self, cell: Cell) -> None:
        self._settled.add(cell.id)
        for item in self._dependents.pop(cell.id, ()):
            self._lacking[item.id] -= 1
            if not self._lacking[item.id] and item.id in self._waiting:
                self._make_ready(item)

    def _make_ready(self, cell: Cell) -> None:
        place, group = self._place[cell.id], self._ready[cell.target]
        heapq.heappush(group, place)
        if group[0] == place:
            heapq.heappush(self._first, (place, cell.target))

    def _bring_back(self) -> None:
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            self._make_ready(self._cells[heapq.heappop(self._later)[1]])

    def _next(self, loaded: Iterable[str], elsewhere: Collection[str]) -> Cell | None:
        target = next((target for target in loaded if self._ready.get(target)), None)
        if target is None:
            target = self._first_group(elsewhere) or self._first_group(())
        return None if target is None else self._pop(target)

    def _first_group(self, avoided: Collection[str]) -> str | None:
        """The group with the first cell, but for those ``avoided``."""
        passed: list[tuple[int, str]] = []
        found = None
        while self._first:
            place, target = self._first[0]
            group = self._ready.get(target)
            if not group or group[0] != place:
                heapq.heappop(self._first)
            elif target in avoided:
                passed.append(heapq.heappop(self._first))
            else:
                found = target
                break
        for entry in passed:
            heapq.heappush(self._first, entry)
        return found

    def _pop(self, target: str) -> Cell:
        group = self._ready[target]
        cell = self._cells[heapq.heappop(group)]
        if group:
            heapq.heappush(self._first, (group[0], target))
        else:
            del self._ready[target]
        self._waiting.discard(cell.id)
        return cell
