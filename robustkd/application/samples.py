"""Store -> samples: what became of each test sample, from the cells' records."""

from __future__ import annotations

import numpy as np

from robustkd.campaigns.plan.cells import AttackCell
from robustkd.campaigns.plan.plan import Plan
from robustkd.campaigns.store import samples
from robustkd.campaigns.store.samples import AttackRecord
from robustkd.campaigns.store.store import Store
from robustkd.reporting.samples import STANDS, AttackedSamples, SampleEvidence


class SampleCollector:
    """Grows with every record that it is shown, so that a large campaign is read once, for its numbers and its samples."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._found: dict[tuple[str, int], AttackedSamples] = {}

    def add(self, cell: AttackCell, record: AttackRecord) -> None:
        """Take one attack cell's samples."""
        outcome, key = record.outcome, (cell.defense, cell.seed)
        if key not in self._found:
            self._found[key] = AttackedSamples(*key, outcome.index, outcome.label, outcome.before, {})
        taken = np.where(outcome.success, outcome.after, STANDS).astype(
            np.int32
        )  # half of int64: a large campaign has millions
        self._found[key].taken_for[cell.attack] = taken

    @property
    def evidence(self) -> SampleEvidence:
        """Every defense and seed that has an attack, in the campaign's order."""
        places = {name: place for place, name in enumerate(self._plan.campaign.defenses)}
        parts = sorted(self._found.values(), key=lambda part: (places[part.defense], part.seed))
        data = self._plan.data
        if data.modality == "images":
            return SampleEvidence(data.classes, parts)
        # A broken request is taken for nothing, and one that the model does not know neither: evaluation.prompts.evaluate_prompt_attack.
        return SampleEvidence((*data.classes, "", ""), parts, data.test["prompt"])


def sample_evidence(plan: Plan, store: Store) -> SampleEvidence:
    """The samples of every finished attack cell."""
    collector = SampleCollector(plan)
    for cell in plan.of("attack"):
        if entry := store.get(cell.id):
            collector.add(cell, samples.read(entry))
    return collector.evidence
