"""Why cells are done again: what differs from the last plan that was run in the same folder."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from robustkd.campaigns.plan.cells import Cell
from robustkd.campaigns.plan.finished import rebuilt_cells
from robustkd.campaigns.plan.plan import Plan
from robustkd.campaigns.store.durable import write_text
from robustkd.campaigns.store.identity import Identity, content_hash
from robustkd.campaigns.store.meta import TrainMeta
from robustkd.campaigns.store.planned import PLAN, CellKey, remembered
from robustkd.campaigns.store.store import Entry, Store
from robustkd.contracts.json_value import JsonValue


def cell_key(cell: Cell) -> CellKey:
    """What identifies a cell within its campaign, whatever its parameters are."""
    return cell.kind, cell.defense, cell.plugin, cell.seed


def remember(plan: Plan, folder: Path) -> None:
    """Note a plan that is being run, for the next one to be compared with.

    Raises:
        StoreError: the folder cannot be written.
    """
    write_text(folder / PLAN, json.dumps({"plan": plan.id, "cells": [[*cell_key(cell), cell.id] for cell in plan.cells]}))


def reasons(plan: Plan, store: Store, finished: Collection[str]) -> list[str]:
    """A sentence for each reason why finished cells are done again, with how many; damaged ones are named.

    Call it after the store was asked for the cells of ``plan``, of which ``finished`` need not be done.
    """
    todo = {cell.id: cell for cell in plan.cells if cell.id not in finished}
    found = [f"{todo[id_].title}: {why}" for id_, why in store.damaged.items() if id_ in todo]
    there = [cell for cell in todo.values() if cell.id not in store.damaged and store.get(cell.id)]
    found += _stale_targets(plan, store, there)
    found += _stale_checks([entry for cell in there if cell.kind == "checks" and (entry := store.get(cell.id))])
    last = remembered(store.folder)
    names = {id_: defense for (kind, defense, _, _), id_ in last.items() if kind == "train"}
    names |= {cell.id: cell.defense for cell in plan.of("train")}
    return found + explain(_before(store, last, todo), todo.values(), names)


def _stale_targets(plan: Plan, store: Store, there: Collection[Cell]) -> list[str]:
    """Of the cells that are in the store: targets that are built anew, and what was made with another target."""
    rebuilt = rebuilt_cells(plan)
    found = [f"{cell.defense}: {_rebuilt(store, plan.campaign.folder, cell)}" for cell in there if cell.id in rebuilt]
    if stale := [cell for cell in there if cell.kind != "checks" and cell.id not in rebuilt]:
        whose = ", ".join(dict.fromkeys(cell.defense for cell in stale))
        found.append(
            _counted(f"{whose}: made with a target that was trained or built again, and came out different", len(stale))
        )
    return found


def _stale_checks(entries: Collection[Entry]) -> list[str]:
    """Why checks that are in the store are done again."""
    found = []
    unrun = sum(not entry.meta.complete for entry in entries)
    if unrun:
        found.append(_counted("checks that could not all be run", unrun))
    if len(entries) > unrun:
        found.append(_counted("checks of attacks that were not finished, or that are done again", len(entries) - unrun))
    return found


def _before(store: Store, last: Mapping[CellKey, str], todo: Mapping[str, Cell]) -> dict[CellKey, tuple[str, Identity]]:
    """Id and identity of the finished cells of the last plan in whose places other ones are to be done."""
    before: dict[CellKey, tuple[str, Identity]] = {}
    for where in map(cell_key, todo.values()):
        if (id_ := last.get(where)) and id_ not in todo and (entry := store.get(id_)) and entry.meta.identity:
            before[where] = id_, entry.meta.identity
    return before


def _rebuilt(store: Store, folder: Path, cell: Cell) -> str:
    """What can be said of a target that is built anew in each run, before it is."""
    changed = changed_files(store, folder, cell)
    if changed:
        return f"{' and '.join(changed)} changed since it was built"
    return "it is built anew, to see whether it is still the same"


def changed_files(store: Store, folder: Path, cell: Cell) -> list[str]:
    """The files that the code of a train cell read when it built its target, and that are other ones now."""
    entry = store.get(cell.id)
    built = entry.noted(TrainMeta).built if entry else None
    files = built.files if built else {}
    return [name for name, hash_ in files.items() if not (folder / name).is_file() or content_hash(folder / name) != hash_]


def explain(before: Mapping[CellKey, tuple[str, Identity]], now: Iterable[Cell], names: Mapping[str, str]) -> list[str]:
    """What changed, of the cells that stood in the same places before with another identity.

    Args:
        before: id and identity of a finished cell, by its place.
        now: the cells that are to be done.
        names: the defense that each train cell's id, old or new, belongs to.
    """
    groups: dict[str, dict[str, int]] = {}
    for cell in now:
        old_id, old = before.get(cell_key(cell), (cell.id, {}))
        if old_id == cell.id:
            continue
        texts = list(_differences(cell, old, names))
        own = [text for text in texts if text not in _INHERITED]
        subject = cell.plugin or cell.defense if own else cell.defense
        count = groups.setdefault("; ".join(own or texts) or "its identity differs", {})
        count[subject] = count.get(subject, 0) + 1
    return [_counted(f"{', '.join(subjects)}: {text}", sum(subjects.values())) for text, subjects in groups.items()]


_RETRAINED = "attacks, checks and analyses, because it trains again"
_ATTACKS = "checks, because its attacks changed"
_TEST, _TRAINING = "the test samples differ", "the training samples differ"
_INHERITED = {_RETRAINED, _ATTACKS}


def differences(planned: Identity, seen: Cell) -> list[str]:
    """How a cell differs from what was planned, in words."""
    return list(_differences(seen, planned, {}))


def _differences(cell: Cell, old: Identity, names: Mapping[str, str]) -> Iterator[str]:
    new = json.loads(json.dumps(cell.identity))
    for part in dict.fromkeys([*new, *old]):
        was, is_ = old.get(part), new.get(part)
        if was == is_:
            continue
        if part == "target":
            yield _RETRAINED
        elif part == "attacks":
            yield _ATTACKS
        elif part == "test data":
            yield _TEST
        elif part == "training data":
            yield _TRAINING
        elif part == "seed":
            yield "other random draws (replica)"
        elif part == "checks":
            yield from _check_differences(was, is_)
        else:
            yield from _value_differences("" if part == "plugin" else part, was, is_, names)


def _check_differences(was: JsonValue, is_: JsonValue) -> Iterator[str]:
    old, new = _by_kind(was), _by_kind(is_)
    for name in dict.fromkeys([*new, *old]):
        if name not in old or name not in new:
            yield f"the check {name} is {'new' if name in new else 'gone'}"
        elif old[name] != new[name]:
            yield from (f"{name} {text}" for text in _value_differences("", old[name], new[name], {}))


def _by_kind(listed: JsonValue) -> dict[str, JsonValue]:
    items = listed if isinstance(listed, list) else []
    return {str(item["kind"]): item for item in items if isinstance(item, dict)}


def parameter_diff(was: Identity, is_: Identity) -> str:
    """How two descriptions of a plug-in of one name differ, as in ``steps 20 -> 40``; empty where they do not."""
    return "; ".join(_value_differences("", dict(was), dict(is_), {}))


def _value_differences(path: str, was: JsonValue, is_: JsonValue, names: Mapping[str, str]) -> Iterator[str]:
    if was == is_:
        return
    if isinstance(was, dict) and isinstance(is_, dict):
        for key in dict.fromkeys([*is_, *was]):
            inner = path if key == "params" else f"{path}.{key}".removeprefix(".")
            yield from _value_differences(inner, was.get(key), is_.get(key), names)
    elif isinstance(is_, str) and is_ in names and names.get(str(was)) == names[is_]:
        yield f"it stands on {names[is_]}, which trains again"
    elif path == "files":
        yield "a file that it reads differs"
    elif path == "source":
        yield "its source code differs"
    elif isinstance(was, list) and isinstance(is_, list) and len(was) == len(is_):
        for one, other in zip(was, is_, strict=True):
            yield from _value_differences(path, one, other, names)
    else:
        yield f"{path} {_shown(was, names)} -> {_shown(is_, names)}"


def _shown(value: JsonValue, names: Mapping[str, str]) -> str:
    if isinstance(value, str):
        return names.get(value, value)
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _counted(text: str, cells: int) -> str:
    return f"{text} ({cells} cell{'s' * (cells != 1)})"
