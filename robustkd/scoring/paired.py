"""Two classifiers on the same samples: the samples on which they disagree say which is better, and how surely.

    only_a   samples that withstand on a alone              difference = (only_a - only_b) / n
    only_b   samples that withstand on b alone

If a classifier draws random numbers, a sample withstands to a share in [0, 1] (see ``ImageOutcome.robust_share``), and what it withstands
more on a than on b is added up to ``only_a``. The intervals then are rather too wide: a difference of shares varies less than that of
two coins with the same means.

Samples on which both stand, or neither, carry no information about the difference. Comparing the two intervals of the single
accuracies instead would waste most of the power that sharing the samples gives.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from robustkd.scoring.intervals import Z95, wilson
from robustkd.scoring.multiplicity import LEVEL, holm

Z80 = 0.8416212335729143  # the 80 % point of the standard normal: the usual power


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided exact p-value of "neither is better": each disagreement is a fair coin. 1 when there is none.

    Source: McNemar: Note on the sampling error of the difference between correlated proportions (Psychometrika 1947); the exact
    form is the sign test, a two-sided binomial test on the disagreements.
    """
    n = only_a + only_b
    tail = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1))
    return float(min(1.0, 2 * tail / 2**n)) if n else 1.0


def paired_test(held_a: np.ndarray, held_b: np.ndarray) -> tuple[int | float, int | float, float]:
    """``only_a``, ``only_b`` and the two-sided p-value of "neither is better", from (N,) bool or shares in [0, 1].

    Exact McNemar of bool. Of shares the sign of each sample's difference d is a fair coin, and sum d / sqrt(sum d^2) is about normal.
    """
    if held_a.dtype == bool and held_b.dtype == bool:
        only_a, only_b = int((held_a & ~held_b).sum()), int((held_b & ~held_a).sum())
        return only_a, only_b, mcnemar(only_a, only_b)
    gap = held_a.astype(np.float64) - held_b
    size = math.sqrt(float((gap**2).sum()))
    more, less = (round(float(side.clip(min=0).sum()), 6) for side in (gap, -gap))
    return more, less, math.erfc(abs(more - less) / size / math.sqrt(2)) if size else 1.0


def paired_interval(only_a: float, only_b: float, n: int, z: float = Z95) -> tuple[float, float]:
    """Tango's score interval of (only_a - only_b) / n, 95 % by default; (-1, 1) when n is 0.

    The differences d that the score test does not reject:  (b - c - n d)^2 <= z^2 * n * (2 q + d (1 - d)),  b = only_a, c = only_b,
    where q is the likeliest probability of "only b" given d, the larger root of

        2 n q^2 + (c d - b d - (b + c) + 2 n d) q - c d (1 - d) = 0.

    Unlike the Wald interval it keeps its coverage when disagreements are few, and is never empty or beyond [-1, 1].

    Source: Tango: Equivalence test and confidence interval for the difference in proportions for the paired-sample design
    (Statistics in Medicine 1998).
    """
    if n == 0:
        return -1.0, 1.0
    centre = (only_a - only_b) / n

    def score(d: float) -> float:
        linear = -only_a - only_b + (2 * n - only_a + only_b) * d
        root = (math.sqrt(max(0.0, linear * linear + 8 * n * only_b * d * (1 - d))) - linear) / (4 * n)
        variance = n * (2 * root + d * (1 - d))
        gap = only_a - only_b - n * d
        return math.copysign(math.inf, gap) if variance <= 0 and gap else gap / math.sqrt(variance) if variance > 0 else 0.0

    def crossing(inside: float, outside: float, level: float) -> float:
        for _ in range(60):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if abs(score(middle)) <= level else (inside, middle)
        return inside

    return crossing(centre, -1.0, z), crossing(centre, 1.0, z)


def unpaired_interval(held_a: float, n_a: int, held_b: float, n_b: int, z: float = Z95) -> tuple[float, float]:
    """Newcombe's hybrid score interval of held_a / n_a - held_b / n_b for different samples, 95 % by default.

    With (l, u) the Wilson interval of each share:  d - sqrt((a - l_a)^2 + (u_b - b)^2)  to  d + sqrt((u_a - a)^2 + (b - l_b)^2).
    (-1, 1) when there are no samples on a side.

    Source: Newcombe: Interval estimation for the difference between independent proportions (Statistics in Medicine 1998), method 10.
    """
    if not n_a or not n_b:
        return -1.0, 1.0
    a, b = held_a / n_a, held_b / n_b
    (low_a, high_a), (low_b, high_b) = wilson(held_a, n_a, z), wilson(held_b, n_b, z)
    return a - b - math.hypot(a - low_a, high_b - b), a - b + math.hypot(high_a - a, b - low_b)


def unpaired_test(held_a: float, n_a: int, held_b: float, n_b: int) -> float:
    """The two-sided p-value of "both have the same share", of different samples: the score test of two proportions.

    1 when there are no samples on a side.
    """
    if not n_a or not n_b:
        return 1.0
    both = (held_a + held_b) / (n_a + n_b)
    size = math.sqrt(both * (1 - both) * (1 / n_a + 1 / n_b))
    return math.erfc(abs(held_a / n_a - held_b / n_b) / size / math.sqrt(2)) if size else 1.0


def samples_to_tell(only_a: float, only_b: float, n: int, *, z: float = Z95, power: float = Z80) -> int | None:
    """How many samples a test needs to tell the two apart with 80 % power, if the shares seen here are the true ones.

    ``z`` is the normal quantile of its level, 5 % by default.

        (z sqrt(psi) + z_power sqrt(psi - delta^2))^2 / delta^2,   psi = (only_a + only_b) / n,   delta = (only_a - only_b) / n

    None when the difference seen is 0: no number of samples tells two equals apart.

    Source: Connor: Sample size for testing differences in proportions for the paired-sample design (Biometrics 1987).
    """
    if n == 0 or only_a == only_b:
        return None
    psi, delta = (only_a + only_b) / n, abs(only_a - only_b) / n
    return math.ceil((z * math.sqrt(psi) + power * math.sqrt(psi - delta * delta)) ** 2 / delta**2)


@dataclass(frozen=True)
class Comparison:
    """Defense ``a`` against defense ``b`` with one seed, sample by sample, in the worst case over the attacks of each.

    Attributes:
        only_a, only_b: samples that withstand on that one alone; summed differences, where they withstand to a share.
        difference, ci_low, ci_high: robust accuracy of a minus that of b, with Tango's 95 % interval.
        p: see ``paired_test``.
        p_adjusted: by Holm, for all comparisons of the campaign; ``p`` of a lone one.
        needed: samples that would tell the two apart (80 % power), if the shares seen are the true ones; None for equals.
        only_on_a, only_on_b: attacks that were run on that one alone.
        shared: the difference over the attacks that both have, where the one that withstands more was spared some; ``p`` is then the
            larger of the two tests', and 1 where they point to different sides.
    """

    a: str
    b: str
    seed: int
    n: int
    only_a: int | float
    only_b: int | float
    difference: float
    ci_low: float
    ci_high: float
    p: float
    needed: int | None
    p_adjusted: float = 1.0
    only_on_a: tuple[str, ...] = ()
    only_on_b: tuple[str, ...] = ()
    shared: float | None = None

    @property
    def spared(self) -> tuple[str, ...]:
        """The attacks that were run on the one that withstands less alone: it may withstand less for no other reason."""
        return self.only_on_b if self.difference > 0 else self.only_on_a if self.difference < 0 else ()

    @property
    def fair(self) -> float:
        """The difference, or that over the attacks that both have where it is nearer to 0; 0 where the two point to different sides."""
        if not self.spared:
            return self.difference
        if self.shared is None or self.shared * self.difference <= 0:
            return 0.0
        return min(self.difference, self.shared, key=abs)

    @property
    def significant(self) -> bool:
        """Whether the two networks differ, at a level of 5 % for all comparisons of the campaign together."""
        return self.p_adjusted < LEVEL

    @classmethod
    def of(cls, a: str, b: str, seed: int, stands_a: np.ndarray, stands_b: np.ndarray) -> Comparison:
        """From the (N,) samples that withstand on each: bool, or shares in [0, 1]."""
        n = len(stands_a)
        only_a, only_b, p = paired_test(stands_a, stands_b)
        low, high = paired_interval(only_a, only_b, n)
        difference, needed = (only_a - only_b) / n if n else 0.0, samples_to_tell(only_a, only_b, n)
        return cls(a, b, seed, n, only_a, only_b, difference, low, high, p, needed, p)


def corrected(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """The same comparisons, their p-values adjusted for all of them together."""
    family = list(comparisons)
    return [replace(item, p_adjusted=p) for item, p in zip(family, holm([item.p for item in family]), strict=True)]


@dataclass(frozen=True)
class Attacked:
    """The attacks that a worst case is taken over, and (N,) what fewer of them leave, those that another defense has too."""

    attacks: tuple[str, ...]
    over: Mapping[frozenset[str], np.ndarray]


NOTHING = Attacked((), {})


def compared(
    standing: Iterable[tuple[str, int, np.ndarray]], attacked: Mapping[tuple[str, int], Attacked] | None = None
) -> list[Comparison]:
    """Every two defenses of the same seed, in the order given; each item is a defense, a seed and its (N,) standing samples.

    ``attacked`` says by defense and seed behind which attacks they stand; without it all stand behind the same.
    """
    known, behind = list(standing), attacked or {}
    return corrected(
        _by_the_same(
            Comparison.of(a, b, seed, stands_a, stands_b), behind.get((a, seed), NOTHING), behind.get((b, seed), NOTHING)
        )
        for place, (a, seed, stands_a) in enumerate(known)
        for b, other, stands_b in known[place + 1 :]
        if seed == other and len(stands_a) == len(stands_b)
    )


def _by_the_same(found: Comparison, a: Attacked, b: Attacked) -> Comparison:
    """The comparison, of which one that was spared an attack must be better over the attacks that both have as well."""
    only_on_a, only_on_b = (tuple(name for name in own.attacks if name not in other.attacks) for own, other in ((a, b), (b, a)))
    found = replace(found, only_on_a=only_on_a, only_on_b=only_on_b)
    if not found.spared:
        return found
    both, shared, p = frozenset(a.attacks) & frozenset(b.attacks), None, 1.0
    if both:
        more, less, alone = paired_test(a.over[both], b.over[both])
        shared = (more - less) / found.n
        p = max(found.p, alone) if shared * found.difference > 0 else 1.0
    return replace(found, shared=shared, p=p, p_adjusted=p)
