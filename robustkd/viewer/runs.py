"""The campaigns of a folder, read anew when their files change. A folder may come from anybody: nothing in it is run or unpickled."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from robustkd.campaigns.comparison.gate import judge_gates
from robustkd.campaigns.execution import live, record
from robustkd.campaigns.execution.live import RunProgress
from robustkd.campaigns.execution.record import Execution
from robustkd.campaigns.file import yaml_source
from robustkd.campaigns.file.document.document import Document
from robustkd.campaigns.results import results_file
from robustkd.campaigns.store.planned import PLAN, CellKey, remembered
from robustkd.campaigns.store.store import Entry, Store
from robustkd.contracts import RobustkdError, StoreError, UsageError
from robustkd.redaction import safe_to_show
from robustkd.reporting.leaderboard import unambiguous
from robustkd.scoring.results import Results

CAMPAIGN, REPORT = "campaign.yaml", "report.html"
LONGEST_FILE = 1 << 20
"""Bytes of a campaign file that is shown."""
_CELL_ID = re.compile(r"[0-9a-f]{32}")
_Stamp = tuple[int, int] | None


@dataclass(frozen=True)
class AttackPlace:
    """An attack on a trained defense, and the id of its cell."""

    defense: str
    attack: str
    seed: int
    cell_id: str


class Run:
    """One campaign's results folder.

    Attributes:
        key: what it is called in addresses: the folder's name.
        problem: why its results cannot be read; "" where they can.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = folder.name
        self.problem = ""
        self.store = Store(folder)
        self._results: tuple[_Stamp, Results | None] = (None, None)
        self._document: tuple[_Stamp, Document | None] = (None, None)
        self._executions: tuple[_Stamp, list[Execution]] = (None, [])

    def file(self, name: str) -> Path | None:
        """A file of the folder; None where it is not there, or where a link leads out of the folder."""
        path = self.folder / name
        try:
            inside = path.resolve().is_relative_to(self.folder.resolve())
            return path if inside and path.is_file() else None
        except (OSError, RuntimeError):  # the latter of links in a circle
            return None

    @property
    def results(self) -> Results | None:
        """What results.json holds; None where there is none, or it cannot be read."""
        file = self.file(results_file.RESULTS)
        stamp = _stamp(file)
        if file is None or stamp is None:
            self.problem = ""
            return None
        if self._results[0] != stamp:
            self.problem, read = "", None
            try:
                read = results_file.read(file)
            except StoreError as error:
                self.problem = safe_to_show(error.message, 400)
            self._results = stamp, read
        return self._results[1]

    @property
    def version(self) -> tuple[int, int] | None:
        """What differs whenever results.json does; None without one."""
        return _stamp(self.file(results_file.RESULTS))

    @property
    def progress(self) -> RunProgress | None:
        """How the run stands that is going on, or that was killed."""
        return live.read(self.folder) if self.file(live.PROGRESS) else None

    @property
    def document(self) -> Document | None:
        """The campaign file as it is written: no plug-in is made of it."""
        file = self.file(CAMPAIGN)
        stamp = _stamp(file)
        if file is None or stamp is None:
            return None
        if self._document[0] != stamp:
            read = None
            with suppress(UsageError, ValidationError, OSError):
                source = yaml_source.read(file)
                read = Document.model_validate(yaml_source.parse(source, str(file)).data, context={"folder": self.folder})
            self._document = stamp, read
        return self._document[1]

    @property
    def text(self) -> str:
        """The campaign file; "" where it cannot be read."""
        file = self.file(CAMPAIGN)
        try:
            return file.read_text(encoding="utf-8") if file and file.stat().st_size <= LONGEST_FILE else ""
        except (OSError, ValueError):
            return ""

    @property
    def executions(self) -> list[Execution]:
        """Every run of the campaign that its record has, the oldest first."""
        file = self.file(record.RECORD)
        stamp = _stamp(file)
        if file is None or stamp is None:
            return []
        if self._executions[0] != stamp:
            self._executions = stamp, record.history(file)
        return self._executions[1]

    @property
    def name(self) -> str:
        """The campaign's name."""
        if results := self.results:
            return results.campaign
        return self.document.name if self.document else self.key

    @property
    def gates(self) -> list[str]:
        """How each gate of the campaign file was judged, in words."""
        results, document = self.results, self.document
        if results is None or document is None:
            return []
        try:
            return [gate.sentence for gate in judge_gates(document.gates, results)]
        except RobustkdError as error:
            return [safe_to_show(error.message, 400)]

    @property
    def planned(self) -> dict[CellKey, str]:
        """The cells of the run that was begun last, by kind, defense, attack or analysis, and seed."""
        return remembered(self.folder) if self.file(PLAN) else {}

    def attacks(self) -> list[AttackPlace]:
        """Every attack on a trained defense: those of the results, or of the run that is going on."""
        if (results := self.results) and not self.progress:
            return [AttackPlace(cell.defense, cell.attack, cell.seed, cell.cell_id) for cell in results.cells]
        return [
            AttackPlace(defense, what, seed, cell_id)
            for (kind, defense, what, seed), cell_id in self.planned.items()
            if kind == "attack"
        ]

    def entry(self, cell_id: str) -> Entry | None:
        """A finished cell; None where it is not there, is damaged, or its id is none."""
        if not self.has(cell_id):
            return None
        return self.store.get(cell_id)

    def has(self, cell_id: str) -> bool:
        """Whether the folder of a cell is there; of a store that leads out of the results folder there is none."""
        if not _CELL_ID.fullmatch(cell_id):
            return False
        path = self.store.path(cell_id)
        return path.is_dir() and path.resolve().is_relative_to(self.folder.resolve())


class Runs:
    """The campaigns of a folder: its own, or those right inside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[Path, Run] = {}

    def all(self) -> list[Run]:
        """Every campaign, by the name of its folder."""
        return [self._known.setdefault(folder, Run(folder)) for folder in self._folders()]

    def get(self, key: str) -> Run | None:
        """The campaign with this key."""
        return next((run for run in self.all() if run.key == key), None)

    def titles(self) -> dict[str, str]:
        """By key, what each campaign is called: its name, with its folder where two have that name."""
        found = {run.folder: run.name for run in self.all()}
        return {folder.name: title for folder, title in unambiguous(found).items()}

    def _folders(self) -> Iterator[Path]:
        if _is_run(self.folder):
            yield self.folder.absolute()
            return
        home = self.folder.resolve()
        with suppress(OSError):
            for child in sorted(self.folder.absolute().iterdir()):
                if child.is_dir() and child.resolve().is_relative_to(home) and _is_run(child):
                    yield child


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (results_file.RESULTS, PLAN))


def _stamp(file: Path | None) -> _Stamp:
    try:
        return None if file is None else ((stat := file.stat()).st_mtime_ns, stat.st_size)
    except OSError:
        return None
