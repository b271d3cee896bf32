"""Whether a defense holds, in a word: what its robust accuracy says, which its verdict does not.

One rule, ours, for all that is shown (docs/verdicts.md, "Does it hold?"). With the robust accuracy r, its 95 % interval [low, high] over
all seeds, the bar b that the campaign sets, and the campaign's undefended rows:

    no        high < b of its own gate; or r is not above an undefended row's; or, where it may be above one by chance, high <= 20 %
    not known there is no number, or none on some seed; or it could only be lower: it is not credible, or an attack has no result; or the
              samples do not tell whether it is above, or an attack on the undefended row has no result
    yes       low >= b
    in part   in between: better than undefended, and not as good as asked

An undefended row holds where low >= b, and there is nothing to defend against; else it does not.

"Above an undefended row" is what the paired comparison of the two claims of these networks, on every seed and for all pairs of the campaign
together. A campaign without an undefended row has a fifth of the samples in its place, unless a gate is passed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from robustkd.scoring.claims import Claim
from robustkd.scoring.results import DefenseResult, Results
from robustkd.scoring.unfinished import unfinished

Holds: TypeAlias = Literal["yes", "in part", "no"]
HARDLY_ANY, NEARLY_ALL = 0.2, 0.9
"""What stands in the place of an undefended row, and of a gate, in a campaign that has none."""

STANDINGS: dict[Holds | None, str] = {
    "yes": "holds",
    "in part": "holds in part",
    "no": "does not hold",
    None: "not known whether it holds",
}
"""The answers beside a number."""
ANSWERS: dict[Holds | None, str] = {"yes": "yes", "in part": "in part", "no": "no", None: "not known"}
"""The answers as columns of tables have them."""


@dataclass(frozen=True)
class Standing:
    """Whether a defense holds, None where it cannot be said, and why: a clause that follows a colon."""

    holds: Holds | None
    why: str


UNKNOWN = Standing(None, "there is no number")


@dataclass(frozen=True)
class _Number:
    """A robust accuracy over its seeds: the mean, the envelope of the intervals, and the samples.

    ``lacks`` says which attacks have no number, ``doubt`` why it could only be lower; both are empty where nothing speaks for it.
    ``whole`` is whether every seed has a number.
    """

    mean: float
    low: float
    high: float
    n: int
    lacks: str
    doubt: str
    whole: bool

    @classmethod
    def of(cls, rows: Sequence[DefenseResult], lacks: str) -> _Number | None:
        known = [row for row in rows if row.robust_accuracy is not None]
        if not known:
            return None
        shares = [row.robust_accuracy for row in known if row.robust_accuracy is not None]
        low = min((row.ci_low for row in known if row.ci_low is not None), default=0.0)
        high = max((row.ci_high for row in known if row.ci_high is not None), default=1.0)
        doubt = f"there is {lacks}, and the robust accuracy could only be lower" if lacks else ""
        if any(row.verdict == "not credible" for row in known):
            doubt = "the number is not credible, and could only be lower"
        return cls(sum(shares) / len(shares), low, high, known[0].n, lacks, doubt, len(known) == len(rows))


@dataclass(frozen=True)
class _Bar:
    """The share that the campaign asks of a defense, and whether a gate asks it of this very one."""

    share: float
    told: str
    own: bool = False


def standings(results: Results) -> dict[str, Standing]:
    """Whether each defense holds, by its name."""
    rows: dict[str, list[DefenseResult]] = {}
    for row in results.defenses:
        rows.setdefault(row.defense, []).append(row)
    lacking = unfinished(results)
    numbers = {name: number for name, found in rows.items() if (number := _Number.of(found, lacking.get(name, "")))}
    claims = {(claim.a, claim.b): claim for claim in results.claims} if results.undefended else {}
    noun = "samples" if results.modality == "images" else "requests"
    return {
        name: _standing(
            name, numbers, _bar(results, name), [other for other in results.undefended if other in rows], claims, noun
        )
        if name in numbers
        else UNKNOWN
        for name in rows
    }


def _bar(results: Results, name: str) -> _Bar:
    gates = [gate for gate in results.gates if gate.metric == "robust_accuracy"]
    own = [gate.at_least for gate in gates if gate.defense == name]
    if own:
        return _Bar(max(own), f"its gate of {_percent(max(own))}", own=True)
    if gates:
        share = max(gate.at_least for gate in gates)
        return _Bar(share, f"the campaign's gate of {_percent(share)}")
    return _Bar(NEARLY_ALL, _percent(NEARLY_ALL))


def _standing(
    name: str,
    numbers: Mapping[str, _Number],
    bar: _Bar,
    undefended: Sequence[str],
    claims: Mapping[tuple[str, str], Claim],
    noun: str,
) -> Standing:
    number = numbers[name]
    if name in undefended:
        return _of_an_undefended_row(number, bar)
    if not number.whole:
        return Standing(None, f"there is {number.lacks or 'no number on some seed'}")
    if bar.own and number.high < bar.share:
        return Standing("no", f"its whole interval lies below {bar.told}")
    passed = number.low >= bar.share
    if undefended:
        shortfalls = [_against(name, other, numbers, claims, noun) for other in undefended]
    else:
        shortfalls = [None if passed and bar.own else _against_a_fifth(number, noun)]
    # A defense that is worse than one undefended row is no defense, whatever cannot be said of another row.
    for shortfall in sorted(filter(None, shortfalls), key=lambda found: found.holds is None):
        if shortfall.holds == "no" or not number.doubt:
            return shortfall
    if number.doubt:
        return Standing(None, number.doubt)
    better = f"better than {_listed(undefended)} (undefended)" if undefended else ""
    if passed:
        told = f"its whole interval lies at or above {bar.told}"
        return Standing("yes", f"{told}, and it is {better}" if better else told)
    told = better or f"more than {_percent(HARDLY_ANY)} withstand every attack"
    return Standing("in part", f"{told}, but its interval does not lie at or above {bar.told}")


def _of_an_undefended_row(number: _Number, bar: _Bar) -> Standing:
    if number.low < bar.share:
        return Standing("no", "it is undefended, what the others are compared with")
    if number.doubt or not number.whole:
        return Standing(None, number.doubt or "there is no number on some seed")
    return Standing(
        "yes", f"its whole interval lies at or above {bar.told} though it is undefended: there is little to defend against"
    )


def _against(
    name: str, other: str, numbers: Mapping[str, _Number], claims: Mapping[tuple[str, str], Claim], noun: str
) -> Standing | None:
    """What speaks against a defense beside an undefended row; None where it is better."""
    if other not in numbers:
        return Standing(None, f"{other} (undefended), which it has to be better than, has no number")
    number, reference = numbers[name], numbers[other]
    claim = claims.get((name, other)) or claims.get((other, name))
    if claim is None:  # not attacked on the same samples: the intervals have to be apart
        difference, better = number.mean - reference.mean, number.low > reference.high
    else:
        difference, better = (claim.difference if claim.a == name else -claim.difference), claim.networks == name
    if better:
        if not reference.lacks:
            return None
        # Only the seeds that both have whole were compared sample by sample.
        return Standing(None, f"of {other} (undefended), which it has to be better than, there is {reference.lacks}")
    if difference <= 0:
        if reference.doubt:
            lower = "could only be lower" if reference.lacks else "is not credible"
            return Standing(None, f"it is not better than {other} (undefended), whose number {lower}")
        return Standing("no", f"it is no better than {other} (undefended)")
    if number.high <= HARDLY_ANY:
        return Standing("no", f"it is not shown to be better than {other} (undefended)")
    if claim is not None and claim.spared:
        were = "was" if len(claim.spared) == 1 else "were"
        return Standing(
            None,
            f"{_listed(claim.spared)} {were} run on {other} (undefended) alone, and over the others this is not shown to be better",
        )
    return Standing(None, f"{number.n} {noun} do not tell whether it is better than {other} (undefended)")


def _against_a_fifth(number: _Number, noun: str) -> Standing | None:
    """What speaks against a defense where nothing undefended is beside it; None where nothing does."""
    if number.low > HARDLY_ANY:
        return None
    if number.mean <= HARDLY_ANY:
        return Standing("no", f"at most {_percent(HARDLY_ANY)} of the {noun} withstand every attack")
    return Standing(None, f"{number.n} {noun} do not tell whether more than {_percent(HARDLY_ANY)} withstand every attack")


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
