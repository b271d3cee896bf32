"""Record -> the same campaign in a new folder, what differs here from where it was run, and whether the numbers come out again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from robustkd.campaigns.execution import record as records
from robustkd.campaigns.execution.record import RECORD, Execution
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan as planning
from robustkd.campaigns.store.durable import write_text
from robustkd.contracts import RobustkdError, UsageError
from robustkd.scoring.results import CellResult, DefenseResult, Results

CAMPAIGN, RESULTS, RECORDED = "campaign.yaml", "results.json", "recorded"
COPIED_BYTES = 64 * 2**20
"""Larger files, and folders, are named and not copied."""


@dataclass(frozen=True)
class Difference:
    """Something that is not here as it was there; None where it was missing."""

    what: str
    recorded: str | None
    here: str | None


@dataclass(frozen=True)
class Number:
    """A share as it was recorded, and as it came out here; None where it has none."""

    what: str
    recorded: float | None
    here: float | None


def recreate(source: Path, out: Path) -> tuple[Execution, Path]:
    """Write the recorded campaign, and the files that it names, into the folder ``out``; returns the record and the campaign file.

    Args:
        source: a folder with ``record.json`` and, for the numbers, ``results.json``. Both are kept in ``out/recorded``.

    Raises:
        UsageError: there is no record in ``source``, or ``out`` holds something else.
    """
    execution = records.read(source / RECORD)
    campaign = out / CAMPAIGN
    if campaign.is_file() and campaign.read_text(encoding="utf-8") != execution.text:
        raise UsageError(f"{campaign} is another campaign", fix="name a new folder with --out")
    kept = out / RECORDED
    kept.mkdir(parents=True, exist_ok=True)
    write_text(campaign, execution.text)
    for name in (RECORD, RESULTS):
        if (source / name).is_file() and source.resolve() != kept.resolve():
            shutil.copyfile(source / name, kept / name)
    for name in execution.files:
        path, copy = _inside(Path(execution.folder), name), _inside(out, name)
        if path and copy and copy != campaign and path.is_file() and path.stat().st_size <= COPIED_BYTES:
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    return execution, campaign


def _inside(folder: Path, name: str) -> Path | None:
    """``folder / name``; None where that is elsewhere, by ``..``, as an absolute path or through a link."""
    path = folder / name
    try:
        inside = ".." not in path.relative_to(folder).parts and path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError):  # it is absolute, or no name of a file: with a null byte, say
        return None
    return path if inside else None


def differences(execution: Execution, campaign: Path) -> list[Difference]:
    """What is not here as it was there, the weightiest first: data, files, plug-ins, code, packages, machine."""
    found = list(_files(execution, campaign.parent))
    try:
        plan = planning.build(spec.load(campaign))
    except RobustkdError as error:
        found.append(Difference("the campaign", "was valid", error.message))
    else:
        found += _mapped("data", execution.data, records.execution(plan, []).data)
        versions = records.plugin_versions(plan.campaign)
        for name, was in execution.plugins.items():
            found += _mapped(name, was, versions.get(name, {}))
        if plan.id != execution.plan and not found:
            found.append(Difference("the identity of the cells", execution.plan, plan.id))
    found += _mapped("git", execution.git, records.git_state(Path.cwd()) if execution.git else {})
    found += _mapped("package", execution.packages, records.packages())
    return found + list(_mapped("machine", execution.machine, records.machine()))


def numbers(source: Path, here: Results) -> list[Number]:
    """Every share of the recorded results beside the one that came out here.

    Raises:
        UsageError: no results were recorded.
    """
    try:
        recorded = Results.from_dict(json.loads((source / RESULTS).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{source} holds no results to compare with", fix="compare by hand: robustkd compare RUN NEW_FOLDER"
        ) from error
    there, now = dict(_shares(recorded)), dict(_shares(here))
    return [Number(what, value, now.get(what)) for what, value in there.items()]


def _shares(results: Results) -> Iterator[tuple[str, float | None]]:
    rows: list[CellResult | DefenseResult] = [*results.cells, *results.defenses]
    for row in rows:
        what = f"× {row.attack}" if isinstance(row, CellResult) else "worst case"
        yield f"{row.defense} {what}, seed {row.seed}", row.robust_accuracy
        if isinstance(row, DefenseResult):
            yield f"{row.defense} clean accuracy, seed {row.seed}", row.clean_accuracy


def _files(execution: Execution, folder: Path) -> Iterator[Difference]:
    for name, was in execution.files.items():
        path = folder / name  # an absolute name stays as it is
        if not path.exists():
            yield Difference(f"file {name}", was[:12] or "a folder", None)
        elif was != (now := records.file_hash(path)):
            yield Difference(f"file {name}", was[:12] or "a folder", now[:12] or "a folder")


def _mapped(what: str, there: Mapping[str, object], here: Mapping[str, object]) -> Iterator[Difference]:
    for key in dict.fromkeys([*there, *here]):
        if there.get(key) != here.get(key):
            yield Difference(f"{what} {key}", _text(there.get(key)), _text(here.get(key)))


def _text(value: object) -> str | None:
    if value is None:
        return None
    return value if isinstance(value, str) else json.dumps(value)
