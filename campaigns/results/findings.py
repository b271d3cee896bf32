"""What the checks and the analyses of a defense found, read from the store."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

from robustkd.campaigns.plan.cells import ChecksCell
from robustkd.campaigns.store.meta import ChecksMeta, TrainMeta
from robustkd.campaigns.store.store import Entry, Store
from robustkd.contracts.analysis import Certificate, Table
from robustkd.contracts.check import Finding
from robustkd.scoring.remedy import Remedy
from robustkd.scoring.results import with_units
from robustkd.scoring.verdict import RULES

FINDINGS, TABLE = "findings.json", "table.json"


class JudgedChecks:
    """The findings of the plan's checks, or of former ones on the same target and attacks where those have not run yet."""

    def __init__(self, store: Store, rejudge: bool) -> None:
        self._store, self._rejudge = store, rejudge

    def entry(self, cell: ChecksCell, entries: Mapping[str, Entry | None]) -> Entry | None:
        """The checks' entry; where there is none, that of the last checks that looked at the same outcomes."""
        if entry := entries[cell.id]:
            return entry
        trained = entries[cell.target]
        if trained is None or not all(entries.get(attack) for attack in cell.attacks.values()):
            return None
        former = self._former.get(tuple(sorted(cell.attacks.values())))
        made_on = former.meta.targets.get(cell.target) if former else None
        return former if made_on in (None, trained.noted(TrainMeta).fingerprint) else None

    def rules(self, entry: Entry | None) -> int:
        """The version of the rules to judge an entry's findings by."""
        return RULES if entry is None or self._rejudge else entry.noted(ChecksMeta).rules or 1

    @cached_property
    def _former(self) -> dict[tuple[str, ...], Entry]:
        """The last entry of checks in the store by the ids of the attacks that they looked at, which are ids of their target too."""
        known = [entry for cell_id in self._store.ids() if (entry := self._store.get(cell_id)) and entry.meta.kind == "checks"]
        found = {}
        for entry in sorted(known, key=lambda entry: entry.meta.finished):
            found[tuple(sorted(cell_id for _, cell_id in entry.meta.identity.get("attacks", ())))] = entry
        return found


def read_findings(entry: Entry | None) -> tuple[list[Finding] | None, Remedy | None]:
    """The findings of a checks cell, None while it has none, and the remedy."""
    if entry is None:
        return None, None
    content = entry.read(FINDINGS)
    try:
        raw = json.loads(content)
        remedy = Remedy(**raw["remedy"]) if raw["remedy"] else None
        return [Finding(**with_units(finding)) for finding in raw["findings"]], remedy
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise entry.damaged(FINDINGS, str(error)) from error


def read_table(entry: Entry) -> Table:
    """The table of an analysis cell."""
    content = entry.read(TABLE)
    try:
        table = Table(**json.loads(content))
        return replace(table, certificate=Certificate(**table.certificate)) if isinstance(table.certificate, dict) else table
    except (ValueError, TypeError, RecursionError) as error:
        raise entry.damaged(TABLE, str(error)) from error
