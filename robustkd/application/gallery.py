"""Store -> what to look at: adversarial images, or requests with what a model answered, from the cells that kept them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, islice

import numpy as np

from robustkd.campaigns.plan.cells import AttackCell
from robustkd.campaigns.plan.plan import Plan
from robustkd.campaigns.store import samples
from robustkd.campaigns.store.store import Entry, Store
from robustkd.contracts import StoreError, Transcript
from robustkd.evaluation.judging import Outcome
from robustkd.reporting.formatting import class_name
from robustkd.reporting.gallery import AT_MOST, GalleryItem
from robustkd.reporting.transcripts import PromptItem

SHOWN = 4


def gallery_items(plan: Plan, store: Store) -> list[GalleryItem | PromptItem]:
    """A few samples of each defense and attack, of the first seed; of a large campaign, of the pairs that a page shows."""
    first = plan.campaign.seeds[0]
    found = (items for cell in plan.of("attack") if cell.seed == first and (items := cell_gallery(plan, store, cell, SHOWN)))
    return list(chain.from_iterable(islice(found, AT_MOST)))


def cell_gallery(plan: Plan, store: Store, cell: AttackCell, count: int) -> Sequence[GalleryItem | PromptItem]:
    """Up to ``count`` samples of one attack cell; none when it is not finished, or its files are not sound."""
    entry = store.get(cell.id)
    if entry is None:
        return []
    outcome = samples.read(entry).outcome
    return (_broken_images if plan.data.modality == "images" else _requests)(plan, cell, entry, outcome, count)


def _broken_images(plan: Plan, cell: AttackCell, entry: Entry, outcome: Outcome, count: int) -> list[GalleryItem]:
    """The first samples that were broken."""
    clean, classes = plan.data.test, plan.data.classes
    perturbed = _kept(entry, "adversarial") if outcome.success.any() else None
    if perturbed is None:
        return []
    rows = np.flatnonzero(outcome.success[: len(perturbed)])[:count]
    return [
        GalleryItem(
            defense=cell.defense,
            attack=cell.attack,
            seed=cell.seed,
            clean=clean.select(rows[i : i + 1]).unit()[0],
            adversarial=perturbed[row],
            label=class_name(classes, int(outcome.label[row])),
            before=class_name(classes, int(outcome.before[row])),
            after=class_name(classes, int(outcome.after[row])),
            distance=float(outcome.distance[row]),
            norm=plan.campaign.attacks[cell.attack].threat.norm,
        )
        for i, row in enumerate(rows)
    ]


def _requests(plan: Plan, cell: AttackCell, entry: Entry, outcome: Outcome, count: int) -> list[PromptItem]:
    """The first requests that were broken and, at the end, one at least that held: a refusal must be seen to be one, too."""
    said = _kept_transcripts(entry)
    broken, held = np.flatnonzero(outcome.success), np.flatnonzero(outcome.standing)
    before, after = _kept(entry, "clean"), _kept(entry, "adversarial")
    first = broken[: max(0, count - min(1, len(held)))]
    return [
        PromptItem(
            defense=cell.defense,
            attack=cell.attack,
            seed=cell.seed,
            label=class_name(plan.data.classes, int(outcome.label[row])),
            request=said[row].request,
            prompt=said[row].prompt,
            output=said[row].output,
            attempts=said[row].attempts,
            broken=bool(outcome.success[row]),
            prefill=said[row].prefill,
            counted=bool(outcome.correct[row]),
            verdicts=said[row].verdicts,
            before=None if before is None or row >= len(before) else before[row],
            after=None if after is None or row >= len(after) else after[row],
        )
        for row in [*first, *held[: count - len(first)]]
        if row < len(said)
    ]


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
