"""What a campaign claims of every two defenses: about the networks that it trained, and about the methods that trained them.

A claim about *these networks* takes the samples as random and the networks as given: trained anew, they may come out otherwise. It needs
every seed to tell the two apart, in the same direction. A claim about the *methods* takes the trainings as random as well, and needs
several seeds. Of each kind, a campaign makes a false claim with a chance of at most 5 %, however many pairs it compares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from robustkd.scoring.methods import MethodTest, over_trainings
from robustkd.scoring.multiplicity import holm, simultaneous_z
from robustkd.scoring.paired import Comparison, corrected, samples_to_tell


@dataclass(frozen=True)
class Claim:
    """Two defenses over their seeds.

    Attributes:
        n: samples, the same on every seed.
        difference: robust accuracy of a minus that of b, mean over seeds.
        ci_low, ci_high: the envelope of the seeds' own 95 % intervals (Tango).
        p, p_adjusted: the largest of the seeds' own; see ``Comparison``.
        networks: the defense whose network is better on every seed; None where that cannot be told.
        needed: samples that would tell the networks apart among as many that are not, from the shares of all seeds; None for equals.
        methods: the test of the methods; None with one seed.
        spared: attacks that were run on the one that withstands less alone; nothing is claimed that does not hold without them.
        shared: the mean difference over the attacks that both have; None where nothing was spared, or they have none in common.
    """

    a: str
    b: str
    seeds: tuple[int, ...]
    n: int
    difference: float
    ci_low: float
    ci_high: float
    p: float
    p_adjusted: float
    networks: str | None
    needed: int | None
    methods: MethodTest | None
    spared: tuple[str, ...] = ()
    shared: float | None = None

    @property
    def less(self) -> str:
        """The defense that withstands less, as far as that can be told."""
        return self.b if self.difference > 0 else self.a


def claims(comparisons: Sequence[Comparison]) -> list[Claim]:
    """What all comparisons of a campaign say together, a claim for each two defenses, in their order."""
    comparisons = corrected(comparisons)
    by_pair: dict[tuple[str, str], list[Comparison]] = {}
    for item in comparisons:
        by_pair.setdefault((item.a, item.b), []).append(item)
    open_ = sum(not item.significant for item in comparisons)
    several = sum(len(rows) > 1 for rows in by_pair.values())
    found = [_claim(rows, open_, several) for rows in by_pair.values()]
    adjusted = iter(holm([claim.methods.p for claim in found if claim.methods]))
    return [
        replace(claim, methods=replace(claim.methods, p_adjusted=next(adjusted))) if claim.methods else claim for claim in found
    ]


def _claim(rows: Sequence[Comparison], undecided: int, several: int) -> Claim:
    """The claim about one pair, of a campaign with so many undecided comparisons and so many pairs of several seeds."""
    a, b = rows[0].a, rows[0].b
    only_a, only_b, n = (sum(getattr(item, name) for item in rows) for name in ("only_a", "only_b", "n"))
    told = {(item.difference > 0) if item.significant else None for item in rows}
    difference = sum(item.difference for item in rows) / len(rows)
    shared = [item.shared for item in rows if item.shared is not None]
    return Claim(
        a,
        b,
        tuple(item.seed for item in rows),
        rows[0].n,
        difference,
        min(item.ci_low for item in rows),
        max(item.ci_high for item in rows),
        max(item.p for item in rows),
        max(item.p_adjusted for item in rows),
        a if told == {True} else b if told == {False} else None,
        samples_to_tell(only_a, only_b, n, z=simultaneous_z(undecided)),
        over_trainings(
            [item.fair for item in rows],
            [(item.only_a + item.only_b) / item.n if item.n else 0.0 for item in rows],
            rows[0].n,
            tests=several,
        ),
        rows[0].only_on_b if difference > 0 else rows[0].only_on_a if difference < 0 else (),
        sum(shared) / len(shared) if shared else None,
    )
