"""What a store holds, whoever it was made for: to be listed, pruned and taken elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

from robustkd.campaigns.plan.plan import Plan
from robustkd.campaigns.store import samples
from robustkd.campaigns.store.durable import atomic_replace
from robustkd.campaigns.store.store import Entry, Store
from robustkd.contracts import Budget, StoreError, UsageError
from robustkd.scoring.results import Results


@dataclass(frozen=True)
class Stored:
    """One cell of a store.

    Attributes:
        kind, defense, attack, seed: what it was called when it was made; ``attack`` also names an analysis.
        bytes: on disk, of which ``perturbations`` are perturbed inputs.
        seconds: what it took.
        used_by: the campaigns that need it.
        damaged: why it cannot be used; nothing else is known of it then.
    """

    id: str
    kind: str = ""
    defense: str = ""
    attack: str = ""
    seed: int | None = None
    bytes: int = 0
    perturbations: int = 0
    seconds: float = 0.0
    finished: str = ""
    used_by: tuple[str, ...] = ()
    damaged: str | None = None


def inventory(store: Store, plans: Mapping[str, Plan]) -> Iterator[Stored]:
    """Every cell that is there; ``plans`` are the campaigns that still need some, by name."""
    needed = {name: {cell.id for cell in plan.cells} for name, plan in plans.items()}
    for cell_id in store.ids():
        used_by = tuple(name for name, ids in needed.items() if cell_id in ids)
        whole, perturbations = store.size(cell_id)
        entry = store.get(cell_id)
        if entry is None:
            yield Stored(cell_id, bytes=whole, used_by=used_by, damaged=store.damaged.get(cell_id, "it is gone"))
            continue
        meta = entry.meta
        yield Stored(
            id=cell_id,
            kind=meta.kind,
            defense=meta.defense,
            attack=meta.plugin,
            seed=meta.seed,
            bytes=whole,
            perturbations=perturbations,
            seconds=meta.wall_seconds,
            finished=meta.finished,
            used_by=used_by,
        )


def export(plan: Plan, store: Store, file: Path) -> tuple[int, int]:
    """Write one row for each sample x attack x defense x seed into ``file`` (.parquet or .csv); returns its cells and rows.

    Raises:
        UsageError: another kind of file.
        StoreError: there is nothing to write, or the file cannot be written.
    """
    if file.suffix not in (".parquet", ".csv"):
        raise UsageError(f"{file} is neither .parquet nor .csv", fix="choose one of the two endings")
    tables = _tables(plan, store)
    first = next(tables, None)
    if first is None:
        raise StoreError(f"{store.folder} holds no finished attack of this campaign", fix="robustkd run it first")
    cells, rows = 1, len(first)
    with atomic_replace(file) as draft:
        writer = pq.ParquetWriter(draft, first.schema) if file.suffix == ".parquet" else pc.CSVWriter(draft, first.schema)
        with writer:
            writer.write_table(first)
            for table in tables:
                writer.write_table(table)
                cells, rows = cells + 1, rows + len(table)
    return cells, rows


def _tables(plan: Plan, store: Store) -> Iterator[pa.Table]:
    for cell in plan.of("attack"):
        if (entry := store.get(cell.id)) is None:
            continue
        use = plan.campaign.attacks[cell.attack]
        yield _table(entry, cell.id, cell.defense, use.name, cell.seed, use.threat.budget)


def sample_tables(results: Results, store: Store) -> Iterator[pa.Table]:
    """The rows that ``export`` writes, of the cells that results are made of and that are there; a table for each."""
    for cell in results.cells:
        if cell.status == "done" and (entry := store.get(cell.cell_id)) is not None:
            yield _table(entry, cell.cell_id, cell.defense, cell.attack, cell.seed, cell.budget)


def _table(entry: Entry, cell_id: str, defense: str, attack: str, seed: int, budget: Budget) -> pa.Table:
    norm, eps = budget.stored
    record = samples.read(entry)
    named = {
        "defense": defense,
        "attack": attack,
        "seed": seed,
        "threat_norm": norm,
        "threat_eps": eps,
        "threat_where": "" if budget.region is None else str(budget.region),
        "cell_id": cell_id,
    }
    columns: dict[str, object] = {name: [value] * len(record.outcome) for name, value in named.items()}
    # One table of them all: what was seen on single draws, which some defenses have, is told by the shares.
    columns |= {name: array for name, array in record.outcome.columns().items() if array.ndim == 1}
    shares = {"clean_share": record.outcome.clean_share, "robust_share": record.outcome.robust_share}
    columns |= {"broken_at": record.broken_on_most} | {name: array.astype(np.float64) for name, array in shares.items()}
    return pa.table(columns)
