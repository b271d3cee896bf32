"""One trained defense: its cells, and what the store has of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from robustkd.campaigns.plan.cells import AnalysisCell, AttackCell, Cell, ChecksCell, TrainCell
from robustkd.campaigns.plan.finished import valid_cells
from robustkd.campaigns.plan.plan import Plan
from robustkd.campaigns.results.attack_result import attack_result
from robustkd.campaigns.results.failure import PENDING, Failure
from robustkd.campaigns.results.findings import JudgedChecks, read_findings, read_table
from robustkd.campaigns.store import samples
from robustkd.campaigns.store.samples import AttackRecord
from robustkd.campaigns.store.store import Entry, Store
from robustkd.contracts.analysis import Table
from robustkd.contracts.check import Verdict
from robustkd.scoring.results import CellResult, TrainingSet
from robustkd.scoring.verdict import verdict
from robustkd.targets.condensed import CondensedCard, CondensedTarget
from robustkd.targets.files import CARD


class Trained:
    """A defense with one seed: its cells, and what the store has of them.

    Attributes:
        headline: its attacks under the campaign's threat model.
        entries: by cell id; None where there is none yet.
        made_of: its training, and those of the defenses that it refers to, as far as they are finished.
        records: of the attack cells that are finished.
        findings: of its checks; None before they have run, and without any.
        rules: the version of the rules by which the findings are judged.
        remedy: what the attacks that the checks named left.
    """

    def __init__(
        self,
        plan: Plan,
        cells: Sequence[Cell],
        store: Store,
        failures: Mapping[str, Failure],
        valid: Collection[str],
        judged: JudgedChecks,
    ) -> None:
        campaign = plan.campaign
        self.plan, self.cells, self.failures = plan, cells, failures
        self.train = next(cell for cell in cells if isinstance(cell, TrainCell))
        self.attacks = [cell for cell in cells if isinstance(cell, AttackCell)]
        self.headline = [cell for cell in self.attacks if campaign.attacks[cell.attack].threat == campaign.threat]
        self.checks = next((cell for cell in cells if isinstance(cell, ChecksCell)), None)
        self.analyses = [cell for cell in cells if isinstance(cell, AnalysisCell)]
        self.entries = {cell.id: store.get(cell.id) if cell.id in valid else None for cell in cells}
        made = [self.train.id, *self.train.required]
        self.made_of = [entry for cell in made if cell in valid and (entry := store.get(cell))]
        self.records = {cell.id: samples.read(entry) for cell in self.attacks if (entry := self.entries[cell.id])}
        found = judged.entry(self.checks, self.entries) if self.checks else None
        self.findings, self.remedy = read_findings(found)
        self.rules = judged.rules(found)

    @property
    def has_result(self) -> bool:
        """False of a defense that the matrix keeps out of every attack: it is there for others (a teacher, a surrogate).

        One of these is told of where its training has failed, since others wait for it.
        """
        lost = not self.entries[self.train.id] and self.failure(self.train).status != PENDING.status
        return bool(self.attacks) or lost

    @property
    def is_complete(self) -> bool:
        """Whether every attack under the campaign's threat model is finished."""
        return bool(self.headline) and all(cell.id in self.records for cell in self.headline)

    @property
    def clean_entry(self) -> Entry:
        """The first finished attack under the campaign's threat model: it knows what held before the attack."""
        return next(entry for cell in self.headline if (entry := self.entries[cell.id]))

    def failure(self, cell: Cell) -> Failure:
        """Why a cell has no result."""
        return self.failures.get(cell.id, PENDING)

    def finished(self) -> list[str]:
        """When each of its finished cells was finished."""
        return [entry.meta.finished for entry in self.entries.values() if entry]

    @property
    def verdict(self) -> Verdict | None:
        """What the findings make of its number; None without any."""
        if self.findings is None:
            return None
        return verdict(self.findings, complete=not self.unattacked(), rules=self.rules)

    def show(self, seen: Callable[[AttackCell, AttackRecord], None]) -> None:
        """Call ``seen`` with each finished attack and its record."""
        for cell in self.attacks:
            if cell.id in self.records:
                seen(cell, self.records[cell.id])

    def attack_results(self) -> list[CellResult]:
        """The result of each of its attack cells, finished or not."""
        return [
            attack_result(self.plan, cell, self.entries[cell.id], self.records.get(cell.id), self.failure(cell))
            for cell in self.attacks
        ]

    def headline_records(self) -> dict[str, AttackRecord]:
        """The record of each finished attack under the campaign's threat model, by the attack's name."""
        return {cell.attack: self.records[cell.id] for cell in self.headline if cell.id in self.records}

    def tables(self) -> dict[str, Table]:
        """The table of each finished analysis, by the analysis's name."""
        return {cell.analysis: read_table(entry) for cell in self.analyses if (entry := self.entries[cell.id])}

    def training_set(self) -> TrainingSet | None:
        """The condensed data set that it is, or was trained on; None where there is none."""
        for entry in self.made_of:
            card = json.loads(entry.read(CARD)) if entry.has(CARD) else {}
            if isinstance(card, dict) and card.get("target") == CondensedTarget.kind:
                own = CondensedCard.read(card)
                return TrainingSet(own.images, own.bytes, entry.meta.wall_seconds)
        return None

    def unattacked(self) -> list[AttackCell]:
        """The attacks that have no result."""
        return [cell for cell in self.attacks if cell.id not in self.records]

    def missing(self) -> list[Cell]:
        """The cells beside the training that have no result: attacks, then the checks, then analyses."""
        others = [*([self.checks] if self.checks else []), *self.analyses]
        return [*self.unattacked(), *(cell for cell in others if not self.entries[cell.id])]


def each_trained(plan: Plan, store: Store, failures: Mapping[str, Failure], rejudge: bool) -> Iterator[Trained]:
    """Every defense with every seed, one after the other."""
    valid, judged = valid_cells(plan, store, failures), JudgedChecks(store, rejudge)
    groups: dict[tuple[str, int], list[Cell]] = {}
    for cell in plan.cells:
        groups.setdefault((cell.defense, cell.seed), []).append(cell)
    for seed in plan.campaign.seeds:
        for name in plan.campaign.defenses:
            yield Trained(plan, groups[name, seed], store, failures, valid, judged)
