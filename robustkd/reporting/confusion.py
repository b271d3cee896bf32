"""What a defense takes its samples for under attack: true class by predicted class."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from robustkd.reporting.formatting import class_name, counted
from robustkd.reporting.samples import BROKEN, AttackedSamples, SampleEvidence, first_seeds
from robustkd.scoring.results import Results

MOST_CLASSES = 20
"""Of a whole table; of more classes the most frequent confusions alone are shown."""
MOST_TABLES = 8
"""Defenses whose table is shown; of further ones the most frequent confusions."""
MOST_PAIRS = 12
NAMED_PAIRS = 3


@dataclass(frozen=True)
class Confused:
    """A class whose samples are taken for another: how many of how many."""

    label: str
    taken_for: str
    count: int
    of: int

    @property
    def sentence(self) -> str:
        """`cat for dog (12 of 100)`."""
        return f"{self.label} for {self.taken_for} ({self.count} of {self.of})"


@dataclass(frozen=True)
class Confusion:
    """One defense under the worst case over the attacks, with its first seed.

    Attributes:
        columns: the classes that samples are taken for; empty where there are too many for a table.
        rows: of each true class that has samples, its name, how many they are, and the share of them taken for each of ``columns``.
        pairs: the most frequent confusions, most frequent first.
        wrong: how many samples are taken for another class than their own, of ``n``.
    """

    defense: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, int, tuple[float, ...]], ...]
    pairs: tuple[Confused, ...]
    wrong: int
    n: int

    @property
    def told(self) -> str:
        """The most frequent confusions in a sentence."""
        if not self.pairs:
            return "no sample is taken for another class"
        first = "; ".join(pair.sentence for pair in self.pairs[:NAMED_PAIRS])
        return f"{counted(self.wrong, 'sample')} of {self.n} taken for another class, most often {first}"


def confusions(results: Results, evidence: SampleEvidence, defenses: Collection[str]) -> list[Confusion]:
    """The table of each of ``defenses`` that has samples with a class; none of requests.

    A sample that several attacks break is taken for what the first of them, in the campaign's order, makes of it. One that is wrong
    before any attack is taken for what it is taken for then.
    """
    counted_attacks = {(item.defense, item.seed): item.attacks for item in results.defenses}
    found: list[Confusion] = []
    for part in first_seeds(evidence):
        attacks = [name for name in counted_attacks.get((part.defense, part.seed), ()) if name in part.taken_for]
        if part.defense in defenses and part.before is not None and attacks:
            tabular = len(found) < MOST_TABLES
            found.append(_confusion(part, part.before, attacks, evidence.classes, MOST_CLASSES if tabular else 0))
    return found


def _confusion(
    part: AttackedSamples, before: np.ndarray, attacks: Sequence[str], classes: Sequence[str], most: int
) -> Confusion:
    """The confusions of one defense, as a table where it has at most so many classes."""
    after = before.copy()
    for name in reversed(attacks):
        broken = part.eligible & (part.taken_for[name] >= BROKEN)
        after[broken] = part.taken_for[name][broken]
    # Of a target that draws random numbers, a sample that is right on most draws may have another class before.
    after = np.where(part.eligible & (after == before), part.label, after)
    known = int(max(part.label.max(initial=0), after.max(initial=0))) + 1
    counts = np.zeros((known, known), dtype=int)
    np.add.at(counts, (part.label, after), 1)
    sizes, present = counts.sum(1), np.flatnonzero(counts.sum(1))
    wrong = counts * ~np.eye(known, dtype=bool)
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_PAIRS]
    pairs = [divmod(int(place), known) for place in order]
    columns = np.flatnonzero(counts.sum(0) + sizes)
    shown = columns if len(columns) <= most else columns[:0]
    return Confusion(
        part.defense,
        tuple(class_name(classes, int(at)) for at in shown),
        tuple(
            (class_name(classes, int(row)), int(sizes[row]), tuple((counts[row, shown] / sizes[row]).tolist()))
            for row in present
            if len(shown)
        ),
        tuple(
            Confused(class_name(classes, a), class_name(classes, b), int(wrong[a, b]), int(sizes[a]))
            for a, b in pairs
            if wrong[a, b]
        ),
        int(wrong.sum()),
        len(part.label),
    )
