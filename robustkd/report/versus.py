"""Which of two defenses is better, and whether these samples can tell."""

from __future__ import annotations

from dataclasses import dataclass

from robustkd.report.formatting import THIN, count, listed
from robustkd.scoring.paired import samples_to_tell
from robustkd.scoring.results import Results


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
        """What the samples can say."""
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
    for a, b in dict.fromkeys((item.a, item.b) for item in results.comparisons):
        rows = [item for item in results.comparisons if (item.a, item.b) == (a, b)]
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


def undecided(results: Results) -> list[str]:
    """The sentences about pairs that these samples cannot tell apart."""
    return [pair.sentence for pair in pairs(results) if not pair.apart]


def points(difference: float) -> str:
    """A difference of two accuracies in percentage points."""
    return f"{100 * difference:.1f}{THIN}points"


def probability(p: float) -> str:
    """A p-value as far as it matters."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def seeds_told(pair: Pair) -> str:
    """Which seeds a comparison is over."""
    return listed([str(seed) for seed in pair.seeds])
