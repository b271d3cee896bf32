"""Store -> samples: what became of each test sample, from the cells' records."""

from __future__ import annotations

import numpy as np

from robustkd.campaigns.plan.cells import AttackCell
from robustkd.campaigns.plan.plan import Plan
from robustkd.campaigns.store import samples
from robustkd.campaigns.store.samples import AttackRecord
from robustkd.campaigns.store.store import Store
from robustkd.contracts import Attack
from robustkd.evaluation.judging import ImageOutcome
from robustkd.reporting.presentation import presentation
from robustkd.reporting.samples import AttackedSamples, SampleEvidence


class SampleCollector:
    """Collects the samples of attack cells one by one, so that a large campaign is read once, for its numbers and its samples."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._parts: dict[tuple[str, int], AttackedSamples] = {}
        self._rejects = False
        self._norm_names: dict[str, str] = {}

    def add(self, cell: AttackCell, record: AttackRecord) -> None:
        """Add the samples of one finished attack cell."""
        outcome, key = record.outcome, (cell.defense, cell.seed)
        self._rejects |= isinstance(outcome, ImageOutcome) and outcome.detection is not None
        shown = presentation(self._plan.data.modality)
        if key not in self._parts:
            before = shown.before(outcome)
            self._parts[key] = AttackedSamples(
                *key, outcome.index, outcome.label, outcome.eligible, {}, before, outcome.clean_share
            )
        taken = shown.taken_for(outcome).astype(np.int32)  # half of int64: a large campaign has millions
        self._parts[key].taken_for[cell.attack] = taken
        use = self._plan.campaign.attacks[cell.attack]
        if isinstance(outcome, ImageOutcome) and isinstance(use.plugin, Attack) and use.plugin.traits.kind == "minimum-norm":
            self._norm_names[cell.attack] = use.plugin.minimises(use.threat)
            self._parts[key].norms[cell.attack] = np.where(outcome.eligible, outcome.norm, np.nan).astype(np.float32)
        if outcome.draws > 1:
            self._parts[key].robust_share[cell.attack] = outcome.robust_share

    @property
    def evidence(self) -> SampleEvidence:
        """Every defense and seed that has an attack, in the campaign's order."""
        places = {name: place for place, name in enumerate(self._plan.campaign.defenses)}
        parts = sorted(self._parts.values(), key=lambda part: (places[part.defense], part.seed))
        data = self._plan.data
        # The class after the last one is that of an input that a detector rejects.
        classes = (*data.classes, "rejected") if self._rejects else data.classes
        return SampleEvidence(classes, parts, presentation(data.modality).texts(data), self._norm_names)


def sample_evidence(plan: Plan, store: Store) -> SampleEvidence:
    """The samples of every finished attack cell."""
    collector = SampleCollector(plan)
    for cell in plan.of("attack"):
        if entry := store.get(cell.id):
            collector.add(cell, samples.read(entry))
    return collector.evidence
