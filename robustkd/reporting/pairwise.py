"""Which of two defenses is better, and whether these samples can tell."""

from __future__ import annotations

from itertools import pairwise

from robustkd.reporting.formatting import THIN, count
from robustkd.scoring.claims import Claim
from robustkd.scoring.methods import MethodTest
from robustkd.scoring.results import Results

AT_MOST = 45


def networks_sentence(claim: Claim) -> str:
    """Whether the samples suffice to tell the networks of two defenses apart."""
    if claim.networks:
        worse = claim.b if claim.networks == claim.a else claim.a
        by = f"by {points(abs(claim.difference))} (adjusted p {probability(claim.p_adjusted)})"
        where = " on every seed" if len(claim.seeds) > 1 else ""
        fair = (
            "" if claim.shared is None else f"; by {points(abs(claim.shared))} over the attacks that both have: {_alone(claim)}"
        )
        return f"These networks: {claim.networks} withstands more than {worse}{where}, {by}{fair}."
    told = f"n = {count(claim.n)} cannot tell {claim.a} from {claim.b}"
    if claim.spared:
        return f"{told} over the attacks that both have: {_alone(claim)}."
    if claim.needed is None:
        return f"{told}; no difference was seen."
    if claim.needed > claim.n:
        return f"{told}; {count(claim.needed)} samples would."
    return f"{told}: the seeds disagree." if len(claim.seeds) > 1 else f"{told}."


def _alone(claim: Claim) -> str:
    """Which attacks the defense that withstands more was spared."""
    return f"{', '.join(claim.spared)} {'was' if len(claim.spared) == 1 else 'were'} run on {claim.less} alone"


def methods_sentence(a: str, b: str, test: MethodTest) -> str:
    """Whether the seeds suffice to tell the methods behind two defenses apart; ``test`` is of a minus b."""
    if test.significant:
        better, worse = (a, b) if test.difference > 0 else (b, a)
        by = f"by {points(abs(test.difference))} over {test.seeds} seeds (adjusted p {probability(test.p_adjusted)})"
        return f"The methods: {better} withstands more than {worse}, {by}."
    told = f"The methods: {test.seeds} seeds cannot tell {a} from {b}"
    if test.difference == 0:
        return f"{told}; no difference was seen."
    if test.seeds_needed is None:
        return f"{told}; with these samples no number of seeds would."
    return f"{told}; {count(test.seeds_needed)} seeds would." if test.seeds_needed > test.seeds else f"{told}."


def sentences(claim: Claim) -> list[str]:
    """What is claimed of the networks, then, with several seeds, what is claimed of the methods."""
    told = [networks_sentence(claim)]
    return [*told, methods_sentence(claim.a, claim.b, claim.methods)] if claim.methods else told


def main_pairs(results: Results) -> list[Claim]:
    """All pairs of up to ten defenses; of more, each defense and the next in the ranking: every two of a hundred are 4,950."""
    found = results.claims
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
    """A sentence about each pair that these samples cannot tell apart, or these seeds where the samples can."""
    told = []
    for claim in main_pairs(results):
        if not claim.networks:
            told.append(networks_sentence(claim))
        elif claim.methods and not claim.methods.significant:
            told.append(methods_sentence(claim.a, claim.b, claim.methods))
    return told


def points(difference: float) -> str:
    """A difference of two accuracies in percentage points."""
    return f"{100 * difference:.1f}{THIN}points"


def probability(p: float) -> str:
    """A p-value as far as it matters."""
    return f"<{THIN}0.001" if p < 0.001 else f"{p:.3f}"
