"""The gallery of a report: adversarial images, or requests with their answers, read from the cells that kept them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, islice

import numpy as np

from robustkd.campaigns.plan.cells import AttackCell
from robustkd.campaigns.plan.plan import Plan
from robustkd.campaigns.store import samples
from robustkd.campaigns.store.store import Entry, Store
from robustkd.contracts import StoreError, Transcript
from robustkd.reporting.gallery import AT_MOST, GalleryItem
from robustkd.reporting.presentation import AttackedCell, presentation
from robustkd.reporting.transcripts import PromptItem

SHOWN = 4


def gallery_items(plan: Plan, store: Store) -> list[GalleryItem | PromptItem]:
    """A few samples of each defense and attack, of the first seed; of a large campaign, of the pairs that a page shows."""
    first = plan.campaign.seeds[0]
    per_cell = (items for cell in plan.of("attack") if cell.seed == first and (items := cell_gallery(plan, store, cell, SHOWN)))
    return list(chain.from_iterable(islice(per_cell, AT_MOST)))


def cell_gallery(plan: Plan, store: Store, cell: AttackCell, count: int) -> Sequence[GalleryItem | PromptItem]:
    """Up to ``count`` samples of one attack cell; none when it is not finished, or its files are not sound."""
    entry = store.get(cell.id)
    if entry is None:
        return []
    attacked = AttackedCell(
        cell.defense,
        cell.attack,
        cell.seed,
        plan.campaign.attacks[cell.attack].threat,
        samples.read(entry).outcome,
        perturbed=lambda which: _kept(entry, which),
        transcripts=lambda: _kept_transcripts(entry),
    )
    return presentation(plan.data.modality).examples(attacked, plan.data, count)


def _kept(entry: Entry, which: str) -> np.ndarray | None:
    try:
        return samples.perturbed(entry, which)
    except StoreError:  # `robustkd store verify` names it; a report does without its images
        return None


def _kept_transcripts(entry: Entry) -> Sequence[Transcript]:
    try:
        return samples.transcripts(entry)
    except StoreError:
        return []
