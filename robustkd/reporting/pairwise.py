"""Which of two defenses is better, and whether these samples can tell."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from robustkd.reporting.formatting import THIN, count
from robustkd.scoring.paired import Comparison, samples_to_tell
from robustkd.scoring.results import Results

AT_MOST = 45


@dataclass(frozen=True)
class Pair:
    """Two defenses over their seeds, each seed compared on its own samples.

    Attributes:
        difference: robust accuracy of a minus that of b, mean over seeds.
        ci_low, ci_high: the envelope of the seeds' own 95 % intervals (Tango).
        p: the largest of the seeds' exact McNemar tests.
        apart: told apart on every seed, in the same direction.
        needed: samples that would tell them apart, from the shares of all seeds; None for equals.
    """

    a: str
    b: str
    seeds: tuple[int, ...]
    n: int
    difference: float
    ci_low: float
    ci_high: float
    p: float
    apart: bool
    needed: int | None

    @property
    def sentence(self) -> str:
        """A sentence on whether the samples suffice to tell the two defenses apart."""
        if self.apart:
            better, worse = (self.a, self.b) if self.difference > 0 else (self.b, self.a)
            return f"{better} withstands more than {worse}, by {points(abs(self.difference))} (p {probability(self.p)})."
        told = f"n = {count(self.n)} cannot tell {self.a} from {self.b}"
        if self.needed is None:
            return f"{told}; no difference was seen."
        return f"{told}; {count(self.needed)} samples would." if self.needed > self.n else f"{told}: the seeds disagree."


def pairs(results: Results) -> list[Pair]:
    """Every two defenses that were attacked on the same samples, in the campaign's order."""
    found = []
    by_pair: dict[tuple[str, str], list[Comparison]] = {}
    for item in results.comparisons:
        by_pair.setdefault((item.a, item.b), []).append(item)
    for (a, b), rows in by_pair.items():
        only_a, only_b, n = (sum(getattr(item, name) for item in rows) for name in ("only_a", "only_b", "n"))
        found.append(
            Pair(
                a,
                b,
                tuple(item.seed for item in rows),
                rows[0].n,
                sum(item.difference for item in rows) / len(rows),
                min(item.ci_low for item in rows),
                max(item.ci_high for item in rows),
                max(item.p for item in rows),
                all(item.told_apart for item in rows) and len({item.difference > 0 for item in rows}) == 1,
                samples_to_tell(only_a, only_b, n),
            )
        )
    return found


def main_pairs(results: Results) -> list[Pair]:
    """All pairs of up to ten defenses; of more, each defense and the next in the ranking: every two of a hundred are 4,950."""
    found = pairs(results)
    if len(found) <= AT_MOST:
        return found
    accuracy: dict[str, list[float]] = {}
    for item in results.defenses:
        if item.robust_accuracy is not None:
            accuracy.setdefault(item.defense, []).append(item.robust_accuracy)
    ranking = sorted(accuracy, key=lambda name: -sum(accuracy[name]) / len(accuracy[name]))
    neighbours = {frozenset(two): rank for rank, two in enumerate(pairwise(ranking))}
    kept = [pair for pair in found if frozenset((pair.a, pair.b)) in neighbours]
    return sorted(kept, key=lambda pair: neighbours[frozenset((pair.a, pair.b))])


def undecided(results: Results) -> list[str]:
    """The sentences about pairs that these samples cannot tell apart."""
    return [pair.sentence for pair in main_pairs(results) if not pair.apart]


def points(difference: float) -> str:
    """A difference of two accuracies in percentage points."""
    return f"{100 * difference:.1f}{THIN}points"


def probability(p: float) -> str:
    """A p-value as far as it matters."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
