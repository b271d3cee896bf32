"""What became of each test sample: by class, by attack, and one by one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TypedDict

import numpy as np

from robustkd.reporting.formatting import class_name, shortened
from robustkd.reporting.terms import ReportTerms
from robustkd.scoring.intervals import count_of, wilson
from robustkd.scoring.results import Results
from robustkd.scoring.worst_case import worst_case

STANDS, BROKEN, UNJUDGED = -1, 0, -2
"""In ``AttackedSamples.taken_for``."""
MAX_OUTCOMES = 400_000
"""Outcomes on the page, about two bytes each: a page of 5 MB has other things to show too."""
MAX_CLASSES = 20
LONGEST_TEXT = 140
FIRST_ROWS, NAMED = 25, 6
"""Rows of the table, and attacks named in one; report.js has the same."""


@dataclass(frozen=True, eq=False)
class AttackedSamples:
    """One trained defense and the attacks on it, sample by sample.

    Attributes:
        index: (N,) positions in the data set.
        label: (N,) the true class, or the category of a request.
        eligible: (N,) bool, whether an attack could succeed at all.
        taken_for: of each attack, (N,): ``STANDS``, ``UNJUDGED``, or where the attack succeeded the class that the defense takes
            an image for, of a request ``BROKEN``.
        before: (N,) the class that the defense takes the clean image for; None for requests.
        clean_share: (N,) bool or in [0, 1], as ``ImageOutcome`` has it; by default ``eligible``.
        robust_share: of each attack, likewise; by default what ``taken_for`` says.
        norms: of each minimum-norm attack, (N,) the norm that it found for each sample, in its own norm; inf or NaN where there is none.
    """

    defense: str
    seed: int
    index: np.ndarray
    label: np.ndarray
    eligible: np.ndarray
    taken_for: dict[str, np.ndarray]
    before: np.ndarray | None = None
    clean_share: np.ndarray | None = None
    robust_share: dict[str, np.ndarray] = field(default_factory=dict)
    norms: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def right(self) -> np.ndarray:
        """(N,) what the clean accuracy is the mean of."""
        return self.eligible if self.clean_share is None else self.clean_share

    def standing(self, attacks: Sequence[str]) -> np.ndarray:
        """(N,) bool, eligible and broken by none of these attacks; or the share of the draws on which it is so."""
        held = (self.robust_share[name] if name in self.robust_share else self.taken_for[name] == STANDS for name in attacks)
        return worst_case([self.right, *held])


@dataclass(frozen=True)
class SampleEvidence:
    """The samples of a campaign.

    Attributes:
        classes: the data's names, by what ``label``, ``before`` and ``taken_for`` hold. A model may know
            further classes, which have no name here.
        attacked: every defense and seed that has an attack.
        texts: of prompts, each request, in the order of the samples.
        norm_names: in which norm each minimum-norm attack looked for the smallest change.
    """

    classes: Sequence[str]
    attacked: Sequence[AttackedSamples]
    texts: Sequence[str] = ()
    norm_names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ClassCell:
    """One class under one defense: shares of the class's n test samples, means over seeds; the interval is of one seed's n."""

    robust: float
    clean: float
    low: float
    high: float


@dataclass(frozen=True)
class ClassTable:
    """Worst-case robust accuracy by true class; ``cells`` has a row per defense and a column per class of ``columns``.

    Attributes:
        sizes: test samples of each shown class.
        left_out: how many classes are not shown: those with the highest robust accuracy.
    """

    columns: tuple[str, ...]
    sizes: tuple[int, ...]
    cells: dict[str, tuple[ClassCell, ...]]
    left_out: int

    @property
    def widest(self) -> float:
        """The width of the widest interval in the table, in [0, 1]."""
        return max((cell.high - cell.low for row in self.cells.values() for cell in row), default=0.0)


@dataclass(frozen=True)
class SampleRow:
    """One sample under one defense, in words."""

    index: int
    label: str
    defense: str
    outcome: str
    fell: str
    text: str = ""


class ListedDefense(TypedDict):
    """One defense's samples: the class that each is taken for before an attack, and ``taken``, by attack, after it.

    ``unfit`` is 1 where a sample is not robust before any attack, ``before`` None for requests. ``taken`` is 0 where a sample stands,
    else the class plus one (of a request 1), and -1 where that could not be judged.
    """

    name: str
    unfit: list[int]
    before: list[int] | None
    taken: dict[str, list[int]]


class ListingData(TypedDict):
    """What the page's script reads; the lists of samples are as long as ``index``."""

    classes: list[str]
    requests: list[str]
    unfit: list[str]
    others: list[str]
    index: list[int]
    label: list[int]
    defenses: list[ListedDefense]


@dataclass(frozen=True)
class Listing:
    """The table that the page filters.

    Attributes:
        data: what its script reads. ``taken`` holds 0 where a sample stands, the class plus one where it falls (of a request 1),
            and -1 where that could not be judged; ``before`` is null for requests.
        rows: the first ones as the script would show them, for a page without scripts.
        kept, of: how many test samples there is room for, of how many.
    """

    data: ListingData
    rows: tuple[SampleRow, ...]
    kept: int
    of: int


@dataclass(frozen=True)
class BrokenBy:
    """How many samples of one defense fall to an attack, and how many of them to no other attack of the campaign."""

    broken: int
    alone: int


def class_table(results: Results, evidence: SampleEvidence) -> ClassTable | None:
    """Who holds on which class; None without samples."""
    counted = {(item.defense, item.seed): item.attacks for item in results.defenses}
    k = len(evidence.classes)
    robust: dict[str, list[np.ndarray]] = {}
    clean: dict[str, list[np.ndarray]] = {}
    for part in evidence.attacked:
        if attacks := [name for name in counted.get((part.defense, part.seed), []) if name in part.taken_for]:
            robust.setdefault(part.defense, []).append(_by_class(part.standing(attacks), part.label, k))
            clean.setdefault(part.defense, []).append(_by_class(part.right, part.label, k))
    if not robust:
        return None
    holds, right = ({name: np.mean(seeds, axis=0) for name, seeds in shares.items()} for shares in (robust, clean))
    sizes = np.bincount(evidence.attacked[0].label, minlength=k)
    present = np.flatnonzero(sizes)
    weakest_first = present[np.argsort(np.mean(list(holds.values()), axis=0)[present], kind="stable")]
    shown = np.sort(weakest_first[:MAX_CLASSES])

    def cell(name: str, at: int) -> ClassCell:
        share, n = float(holds[name][at]), int(sizes[at])
        return ClassCell(share, float(right[name][at]), *wilson(count_of(share, n), n))

    return ClassTable(
        tuple(class_name(evidence.classes, int(at)) for at in shown),
        tuple(int(sizes[at]) for at in shown),
        {name: tuple(cell(name, at) for at in shown) for name in holds},
        len(present) - len(shown),
    )


def broken_by(evidence: SampleEvidence) -> dict[str, dict[str, BrokenBy]]:
    """For each defense, of its first seed, what each attack breaks and what it alone breaks."""
    table = {}
    for part in first_seeds(evidence):
        broken = {name: part.eligible & (taken >= BROKEN) for name, taken in part.taken_for.items()}
        hits = np.sum(list(broken.values()), axis=0)
        table[part.defense] = {
            name: BrokenBy(int(mine.sum()), int((mine & (hits == 1)).sum())) for name, mine in broken.items()
        }
    return table


def first_seeds(evidence: SampleEvidence) -> list[AttackedSamples]:
    """Each defense with its first seed."""
    first: dict[str, AttackedSamples] = {}
    for part in evidence.attacked:
        first.setdefault(part.defense, part)
    return list(first.values())


def listing(evidence: SampleEvidence, terms: ReportTerms, others: Collection[str] = ()) -> Listing | None:
    """Each defense's first seed, sample by sample, as far as a page has room; None without samples.

    Args:
        others: attacks under another threat model than the campaign's: a sample that falls to nothing else held.
    """
    parts = first_seeds(evidence)
    if not parts:
        return None
    of = len(parts[0].label)
    kept = min(of, max(1, MAX_OUTCOMES // sum(len(part.taken_for) for part in parts)))
    texts = [shortened(text, LONGEST_TEXT) for text in evidence.texts[:kept]]
    data: ListingData = {
        "classes": _names(evidence.classes, parts),
        "requests": texts,
        "unfit": [terms.unfit, terms.unfit_told],
        "others": sorted(others),
        "index": parts[0].index[:kept].tolist(),
        "label": parts[0].label[:kept].tolist(),
        "defenses": [
            {
                "name": part.defense,
                "unfit": (~part.eligible[:kept]).astype(int).tolist(),
                "before": None if part.before is None else part.before[:kept].tolist(),
                "taken": {name: (taken[:kept] + 1).tolist() for name, taken in part.taken_for.items()},
            }
            for part in parts
        ],
    }
    first = ((sample, part) for sample in range(kept) for part in parts)
    rows = tuple(
        _row(part, sample, evidence.classes, terms, others, texts[sample] if texts else "")
        for sample, part in islice(first, FIRST_ROWS)
    )
    return Listing(data, rows, kept, of)


def _row(
    part: AttackedSamples, sample: int, classes: Sequence[str], terms: ReportTerms, others: Collection[str], text: str
) -> SampleRow:
    names = int(part.index[sample]), class_name(classes, int(part.label[sample])), part.defense
    if not part.eligible[sample]:
        before = "" if part.before is None else class_name(classes, int(part.before[sample]))
        return SampleRow(*names, terms.unfit, terms.unfit_told.replace("{}", before), text)

    def fallen(name: str, taken: int) -> str:
        to = "" if part.before is None else f" → {class_name(classes, taken)}"
        return name + to + (" (another threat model)" if name in others else "")

    fell = [fallen(name, int(taken[sample])) for name, taken in part.taken_for.items() if taken[sample] >= BROKEN]
    more = [f"and {len(fell) - NAMED} more"] if len(fell) > NAMED else []
    counted = [name for name in part.taken_for if name not in others] or list(part.taken_for)
    found = [int(part.taken_for[name][sample]) for name in counted]
    outcome = "broken" if max(found) >= BROKEN else "not judged" if UNJUDGED in found else "held"
    return SampleRow(*names, outcome, ", ".join([*fell[:NAMED], *more]) or "nothing", text)


def _names(classes: Sequence[str], parts: Sequence[AttackedSamples]) -> list[str]:
    """The name of every class that a sample has or is taken for."""
    seen = [array for part in parts if part.before is not None for array in (part.before, *part.taken_for.values())]
    highest = max((int(array.max()) for array in seen), default=-1)
    return [class_name(classes, number) for number in range(max(len(classes), highest + 1))]


def _by_class(holds: np.ndarray, label: np.ndarray, classes: int) -> np.ndarray:
    """(K,) the share of each class's samples that hold; 0 where there are none."""
    sizes = np.bincount(label, minlength=classes)
    share: np.ndarray = np.bincount(label, weights=holds, minlength=classes) / np.maximum(sizes, 1)
    return share
