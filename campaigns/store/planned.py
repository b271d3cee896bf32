"""What a results folder remembers of the plan that was run last, and the trained defenses that it holds."""

from __future__ import annotations

import json
from pathlib import Path

from robustkd.campaigns.store.store import Store
from robustkd.contracts import StoreError, UsageError, suggestion

PLAN = "plan.json"

CellKey = tuple[str, str, str, int]
"""What a cell is in the words of its campaign file: kind, defense, attack or analysis, seed."""


def remembered(folder: Path) -> dict[CellKey, str]:
    """The ids of the plan that was run last, by place; empty when there is none, or its file is damaged."""
    try:
        rows = json.loads((folder / PLAN).read_bytes())["cells"]
        return {(str(kind), str(defense), str(what), int(seed)): str(id_) for kind, defense, what, seed, id_ in rows}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def trained_cell(folder: Path, defense: str, campaign: str) -> Path:
    """The folder of the trained target that ``defense``, or ``defense/seed``, names.

    Args:
        folder: a results folder.
        campaign: what it is of, as a person wrote it.

    Raises:
        UsageError: there is no such defense or seed.
        StoreError: it is not trained.
    """
    name, _, seed = defense.partition("/")
    trained = {(what, number): cell_id for (kind, what, _, number), cell_id in remembered(folder).items() if kind == "train"}
    if not trained:
        raise StoreError(f"{folder} holds no trained defense", fix=f"robustkd run {campaign}")
    names, seeds = sorted({what for what, _ in trained}), sorted(number for what, number in trained if what == name)
    if not seeds:
        raise UsageError(f"'{campaign}' has no defense '{name}'", fix=suggestion(name, names) or f"one of: {', '.join(names)}")
    chosen = seed or str(seeds[0])
    if chosen not in map(str, seeds):
        raise UsageError(f"'{name}' was not trained with seed '{chosen}'", fix=f"one of: {', '.join(map(str, seeds))}")
    entry = Store(folder).get(trained[name, int(chosen)])
    if entry is None:
        raise StoreError(f"'{name}' with seed {chosen} is not trained in {folder}", fix=f"robustkd run {campaign}")
    return entry.folder
