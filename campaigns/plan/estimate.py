"""What a plan will take, by what the store says that the like of its cells took."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Literal

from robustkd.campaigns.plan.plan import Plan
from robustkd.campaigns.store.identity import digest
from robustkd.campaigns.store.meta import AttackMeta, ChecksMeta
from robustkd.campaigns.store.store import Entry, Store
from robustkd.contracts.json_value import JsonObject, JsonValue

Basis = Literal["the same with another seed", "the same on another defense", "unknown"]
BASES: tuple[Basis, ...] = ("the same with another seed", "the same on another defense", "unknown")


@dataclass(frozen=True)
class Estimate:
    """What a cell is expected to take: the median of stored cells that are like it.

    Attributes:
        basis: in what they are like it. With another seed, the cells that it stands on are also like theirs.
        seconds: None when nothing like it is stored.
        passes: forward and backward passes of an attack, or of checks and their remedies, over all samples.
    """

    basis: Basis
    seconds: float | None = None
    passes: tuple[float, float] | None = None


@dataclass(frozen=True)
class Cost:
    """What the cells that are to do are expected to take together.

    Attributes:
        cells: how many there are, by basis.
        seconds, passes: of those that are known; one after the other.
        peak_bytes: the most memory that a process has held on cells of this store; None without any.
    """

    cells: Mapping[Basis, int]
    seconds: float
    passes: tuple[float, float]
    peak_bytes: int | None


def estimates(plan: Plan, store: Store, finished: Collection[str] = ()) -> dict[str, Estimate]:
    """An estimate for each cell of a plan that is not ``finished``."""
    todo = {cell.id: cell for cell in plan.cells if cell.id not in finished}
    if not todo:
        return {}
    known = _identities(plan, store)
    recipes = _Recipes(known)
    alike: dict[str, list[Entry]] = defaultdict(list)
    elsewhere: dict[str, list[Entry]] = defaultdict(list)
    for cell_id, entry in _entries(store, known):
        alike[recipes.of(cell_id)].append(entry)
        elsewhere[_apart(known[cell_id])].append(entry)
    found = {}
    for cell in todo.values():
        same, near = alike.get(recipes.of(cell.id), []), elsewhere.get(_apart(cell.identity), [])
        found[cell.id] = _estimate(BASES[0], same) if same else _estimate(BASES[1], near) if near else Estimate("unknown")
    return found


def cost(found: Mapping[str, Estimate], store: Store) -> Cost:
    """The estimates of all cells added up; ``cells`` counts them by what the estimate is based on."""
    cells = Counter(estimate.basis for estimate in found.values())
    passes = [estimate.passes for estimate in found.values() if estimate.passes]
    peaks = [entry.meta.peak_bytes for cell_id in store.ids() if (entry := store.get(cell_id))]
    return Cost(
        cells={basis: cells[basis] for basis in BASES if cells[basis]},
        seconds=sum(estimate.seconds or 0.0 for estimate in found.values()),
        passes=(sum(one[0] for one in passes), sum(one[1] for one in passes)),
        peak_bytes=max(peaks, default=0) or None,
    )


def _estimate(basis: Basis, entries: list[Entry]) -> Estimate:
    passes = [entry.meta.passes for entry in entries if isinstance(entry.meta, AttackMeta | ChecksMeta) and entry.meta.passes]
    return Estimate(
        basis,
        median(entry.meta.wall_seconds for entry in entries),
        (median(one[0] for one in passes), median(one[1] for one in passes)) if passes else None,
    )


def _identities(plan: Plan, store: Store) -> dict[str, JsonObject]:
    stored: dict[str, JsonObject] = {cell_id: entry.meta.identity for cell_id in store.ids() if (entry := store.get(cell_id))}
    return stored | {cell.id: cell.identity for cell in plan.cells}


def _entries(store: Store, known: Mapping[str, JsonObject]) -> Iterable[tuple[str, Entry]]:
    for cell_id in store.ids():
        if known.get(cell_id) and (entry := store.get(cell_id)):
            yield cell_id, entry


class _Recipes:
    """What a cell is but for its seed: its identity, with the recipes of the cells that it stands on in the place of their ids."""

    def __init__(self, identities: Mapping[str, JsonObject]) -> None:
        self._identities = identities
        self._found: dict[str, str] = {}

    def of(self, cell_id: str) -> str:
        if cell_id not in self._found:
            parts = {name: part for name, part in self._identities[cell_id].items() if name != "seed"}
            self._found[cell_id] = digest(self._seedless(parts))
        return self._found[cell_id]

    def _seedless(self, value: JsonValue) -> JsonValue:
        if isinstance(value, Mapping):
            return {key: self._seedless(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._seedless(item) for item in value]
        return self.of(value) if isinstance(value, str) and value in self._identities else value


def _apart(identity: JsonObject) -> str:
    """A cell's identity but for its seed and what it stands on."""
    return json.dumps(
        {name: part for name, part in identity.items() if name not in ("seed", "target", "attacks")}, sort_keys=True
    )
