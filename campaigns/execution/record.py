"""What has to be known of a run beside its numbers, so that somebody else can repeat it: ``record.json`` in the output folder.

One entry for each time that the campaign was run: its text, the command, the code's git state, the machine, every package's
version, the plug-ins with theirs, the hashes of the data, of the files that it reads and of the trained targets. No secrets: the
command line and the text are written without them, and the environment's variables are not written at all.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from robustkd import plugins
from robustkd.campaigns.execution.accelerators import accelerators
from robustkd.campaigns.execution.run import Observer
from robustkd.campaigns.file.campaign import Campaign
from robustkd.campaigns.file.document.block import Name
from robustkd.campaigns.plan.finished import rebuilt_cells
from robustkd.campaigns.plan.plan import Plan
from robustkd.campaigns.results.data_summary import data_summary
from robustkd.campaigns.store.durable import write_text
from robustkd.campaigns.store.identity import content_hash, relative
from robustkd.campaigns.store.meta import TrainMeta
from robustkd.campaigns.store.store import Store
from robustkd.contracts import UsageError
from robustkd.redaction import redacted, redacted_command
from robustkd.scoring.results import Results

RECORD = "record.json"
GIT_SECONDS = 10


class GitState(TypedDict, total=False):
    """Commit and branch of a repository, and whether tracked files differ from the commit."""

    commit: str
    branch: str
    dirty: bool


class Machine(TypedDict, total=False):
    """What numbers may depend on: the platform, its accelerators by name, the version of Python."""

    system: str
    processor: str
    cores: int | None
    accelerators: list[str]
    python: str


@dataclass(frozen=True)
class Numbers:
    """What a run found of one trained defense: shares in [0, 1], the interval of the robust accuracy, and the verdict."""

    clean_accuracy: float | None
    robust_accuracy: float | None
    ci_low: float | None
    ci_high: float | None
    verdict: str | None


class DataState(TypedDict, total=False):
    """The data: name, test samples, SHA-256 of all samples and of the test samples alone."""

    name: str
    n: int
    digest: str
    test_digest: str


@dataclass(frozen=True)
class Execution:
    """One run of a campaign.

    Attributes:
        text: the campaign file.
        folder: where it was, and the files that it names.
        plan: hash over all cells.
        command: the command line.
        git: of that folder; empty outside of a repository.
        packages: the version of every installed distribution.
        plugins: those of the campaign, as ``attacks/pgd``, with their version and the package that they come from.
        files: the SHA-256 of each file that the campaign names, or that code of the user's own read when it built a target, by its
            path relative to ``folder`` (or absolute).
        targets: the hash of each trained target, by ``defense/seed``.
        started, finished: in UTC; no end while it runs, or when it was killed.
        numbers: what was found of each trained defense, by ``defense/seed``; of runs of former versions nothing is noted.
    """

    campaign: Name
    text: str
    folder: str
    plan: str
    command: list[str]
    git: GitState
    machine: Machine
    packages: dict[str, str]
    plugins: dict[str, dict[str, str]]
    seeds: list[int]
    data: DataState
    files: dict[str, str]
    started: str
    targets: dict[str, str] = field(default_factory=dict)
    finished: str | None = None
    complete: bool = False
    numbers: dict[str, Numbers] = field(default_factory=dict)


_EXECUTION = TypeAdapter(Execution)


class Recorder(Observer):
    """Writes the record of a run into its folder, when it begins and when it ends."""

    def __init__(self, folder: Path, command: Sequence[str]) -> None:
        self._folder, self._command = folder, command
        self._before: list[dict[str, Any]] = []
        self._now: Execution | None = None

    def planned(self, plan: Plan, finished: int, todo: int) -> None:
        """Write the record of a run that has not ended."""
        self._before = _entries(self._folder / RECORD)
        self._plan = plan
        self._now = execution(plan, self._command)
        self._write(self._now)

    def finished(self, results: Results) -> None:
        """Add the trained targets, the files that were read and the end of the run to its record."""
        targets = {f"{item.defense}/{item.seed}": item.target_hash for item in results.defenses if item.target_hash}
        assert self._now is not None
        files = self._now.files | files_built_from(self._plan, Store(self._folder))
        complete = not results.incomplete
        self._now = replace(
            self._now, targets=targets, files=files, finished=_now(), complete=complete, numbers=_numbers(results)
        )
        self._write(self._now)

    def _write(self, now: Execution) -> None:
        content = {"version": 1, "runs": [*self._before, asdict(now)]}
        write_text(self._folder / RECORD, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def execution(plan: Plan, command: Sequence[str]) -> Execution:
    """What can be said of a run before it has begun."""
    campaign, data = plan.campaign, data_summary(plan)
    return Execution(
        campaign=campaign.name,
        text=redacted(campaign.text),
        folder=str(campaign.folder),
        plan=plan.id,
        command=redacted_command(command),
        git=git_state(campaign.folder),
        machine=machine(),
        packages=packages(),
        plugins=plugin_versions(campaign),
        seeds=list(campaign.seeds),
        data={"name": data.name, "n": data.n, "digest": data.digest, "test_digest": data.test_digest},
        files={relative(path, campaign.folder): file_hash(path) for path in files_named(campaign)},
        started=_now(),
    )


def read(path: Path) -> Execution:
    """The last complete run of a record, or the last one. A record may come from anybody.

    Raises:
        UsageError: there is no record, it is damaged, or what it says is of another kind than a record's.
    """
    entries = _entries(path)
    if not entries:
        raise UsageError(
            f"{path} holds no record of a run", fix="name an output folder of robustkd run, or a run id of an MLflow server"
        )
    chosen = next((entry for entry in reversed(entries) if entry.get("complete")), entries[-1])
    try:
        found = Execution(**chosen)
    except TypeError as error:
        raise UsageError(f"the record {path} is of another version of robustkd: {error}", fix="install that version") from error
    try:
        _EXECUTION.validate_python(chosen)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(
            f"the record {path} is damaged: {where}: {first['msg']}", fix="take the record that was written"
        ) from error
    return found


def history(path: Path) -> list[Execution]:
    """Every run of a record, the oldest first; those that are damaged, or of another version, are left out."""
    found = []
    for entry in _entries(path):
        with suppress(ValidationError):
            found.append(_EXECUTION.validate_python(entry))
    return found


def git_state(folder: Path) -> GitState:
    """Commit, branch, and whether tracked files differ from it; empty where there is no repository or no git."""

    def git(*arguments: str) -> str:
        # No prompts, no locks: this only looks.
        quiet = {"GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0"}
        # core.fsmonitor is a command that the repository's own settings could name.
        command = ["git", "-C", str(folder), "-c", "core.fsmonitor=false", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_SECONDS, check=True, env=os.environ | quiet)
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no")
        return {"commit": commit, "branch": git("rev-parse", "--abbrev-ref", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.SubprocessError):
        return {}


def machine() -> Machine:
    """This machine, as far as numbers may depend on it."""
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "accelerators": accelerators(),
        "python": platform.python_version(),
    }


def packages() -> dict[str, str]:
    """Every installed distribution and its version."""
    found = {}
    for dist in distributions():
        # ``dist.metadata`` parses the whole text, which takes a second over two hundred distributions.
        text = dist.read_text("METADATA") or dist.read_text("PKG-INFO") or ""
        name, version = (re.search(rf"^{key}: *(\S+)", text, re.MULTILINE) for key in ("Name", "Version"))
        if name and version:
            found[name[1]] = version[1]
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def plugin_versions(campaign: Campaign) -> dict[str, dict[str, str]]:
    """The plug-ins that a campaign names, with their versions and the packages that they come from."""
    uses: list[tuple[plugins.Group, str, str]] = [("datasets", campaign.data.name, "")]
    uses += [("defenses", use.kind, use.plugin.version) for use in campaign.defenses.values()]
    uses += [("attacks", use.kind, use.plugin.version_for(use.threat)) for use in campaign.attacks.values()]
    uses += [("analyses", use.kind, use.plugin.version) for use in campaign.analyses.values()]
    uses += [("judges", use.kind, use.plugin.version) for use in campaign.judges.values()]
    uses += [("checks", check.name, check.version) for check in campaign.checks]
    origins = {(group, info.name): info for group in {group for group, _, _ in uses} for info in plugins.listing(group)}
    found = {}
    for group, kind, version in uses:
        origin = origins.get((group, kind.partition(":")[0]))
        package = f"{origin.package} {origin.package_version}" if origin else "unknown"
        found[f"{group}/{kind}"] = {"version": str(version), "package": package}
    return found


def files_named(campaign: Campaign) -> list[Path]:
    """The files (and folders) that a campaign names: those that its plug-ins read, and its data's."""
    plugged = [path for use in campaign.defenses.values() for path in use.plugin.files()]
    plugged += [path for use in campaign.attacks.values() for path in use.plugin.files()]
    plugged += [path for use in campaign.judges.values() for path in use.plugin.files()]
    plugged += [path for use in campaign.analyses.values() for path in use.plugin.files()]
    named = [Path(value) for value in campaign.data.params.values() if isinstance(value, str) and Path(value).is_absolute()]
    return sorted({*plugged, *(path for path in named if path.exists())})


def files_built_from(plan: Plan, store: Store) -> dict[str, str]:
    """The files that code of the user's own read when it built targets, as it was noted then, with their hashes."""
    entries = [store.get(cell_id) for cell_id in rebuilt_cells(plan)]
    built = [entry.noted(TrainMeta).built for entry in entries if entry]
    return {name: hash_ for one in built if one for name, hash_ in one.files.items()}


def changed_since(folder: Path) -> list[str]:
    """The files that the last complete run into ``folder`` read and that are there with another content now.

    Those that are not there are left out: a results folder may have come from another machine.
    """
    complete = [entry for entry in _entries(folder / RECORD) if entry.get("complete")]
    last: dict[str, Any] = complete[-1] if complete else {}
    files, home = last.get("files"), last.get("folder")
    if not isinstance(files, dict) or not isinstance(home, str):
        return []
    return [
        name for name, was in files.items() if was and (Path(home) / name).is_file() and file_hash(Path(home) / name) != was
    ]


def file_hash(path: Path) -> str:
    """SHA-256 of a file; empty for a folder, whose content the hash of the data speaks for."""
    return content_hash(path) if path.is_file() else ""


def _numbers(results: Results) -> dict[str, Numbers]:
    return {
        f"{item.defense}/{item.seed}": Numbers(
            item.clean_accuracy, item.robust_accuracy, item.ci_low, item.ci_high, item.verdict
        )
        for item in results.defenses
    }


def _entries(path: Path) -> list[dict[str, Any]]:
    try:
        runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
        return [entry for entry in runs if isinstance(entry, dict)]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
