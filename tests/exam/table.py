"""What the exam prints, and what it fails for."""

from __future__ import annotations

from collections.abc import Sequence

from exam.evaluations import EVALUATIONS
from exam.pairs import LIMIT, Pair

VERDICTS = ("credible", "suspect", "not credible")
ACCUSED = 1 / 40
"""The share of pairs of an honest network and a strong evaluation that may be worse than ``credible``."""

LOOSE = 0.03
"""How far the truth, an upper bound, may be above what an audit finds before the table says so."""


def believed_artefacts(pairs: Sequence[Pair]) -> list[Pair]:
    """Artefacts whose number is too high, and ``credible``."""
    return [pair for pair in pairs if not pair.honest and pair.weak and pair.believed]


def believed_weak(pairs: Sequence[Pair]) -> list[Pair]:
    """Honest networks whose evaluation was too weak, and whose number is ``credible`` all the same."""
    return [pair for pair in pairs if pair.honest and pair.weak and pair.believed]


def called_masked(pairs: Sequence[Pair]) -> list[Pair]:
    """Honest networks under a weak evaluation that are said to hide their gradient."""
    return [pair for pair in pairs if pair.honest and _strength(pair) == "weak" and pair.named == "masked"]


def accused(pairs: Sequence[Pair]) -> list[Pair]:
    """Honest networks under a strong evaluation that is not ``credible``."""
    return [pair for pair in pairs if pair.honest and _strength(pair) == "strong" and not pair.believed]


def passed(pairs: Sequence[Pair]) -> bool:
    """No artefact believed; of the honest networks under a strong evaluation at most 1 in 40 accused; weak ones named weak."""
    strong = [pair for pair in pairs if pair.honest and _strength(pair) == "strong"]
    few = len(accused(pairs)) <= ACCUSED * len(strong)
    return few and not (believed_artefacts(pairs) or believed_weak(pairs) or called_masked(pairs))


def table(pairs: Sequence[Pair]) -> str:
    """Every pair, the confusion table, and what the exam fails for."""
    lines = [_line(pair) for pair in sorted(pairs, key=lambda pair: (pair.honest, pair.network))]
    lines = [
        f"{'network':<34}{'evaluation':<11}{'clean':>6}{'truth':>6}{'said':>6}{'remedy':>7}  {'verdict':<13} what fired",
        *lines,
        "",
    ]
    lines += confusion(pairs)
    for title, listed in (
        (f"artefacts whose number is more than {100 * LIMIT:g} points too high, and credible", believed_artefacts(pairs)),
        ("honest networks under a strong evaluation, worse than credible", accused(pairs)),
        ("honest networks under too weak an evaluation, and credible", believed_weak(pairs)),
        ("honest networks under a weak evaluation, said to be masked", called_masked(pairs)),
    ):
        lines += ["", f"{title}: {len(listed)}", *(_line(pair) for pair in listed)]
    looser = [pair for pair in pairs if pair.reported is not None and pair.excess < -0.03]
    lines += [
        "",
        f"truth more than 3 points above what an audit found (the exam's own attack is too weak there): {len(looser)}",
    ]
    lines += [_line(pair) for pair in looser]
    return "\n".join(lines)


def confusion(pairs: Sequence[Pair]) -> list[str]:
    """How many networks got which verdict, by kind and evaluation; beside it, of those whose number is too high."""
    lines = [
        f"{'':<10}{'evaluation':<11}"
        + "".join(f"{verdict:>18}" for verdict in VERDICTS)
        + "    (of them, too high by > 5 points)"
    ]
    for honest in (False, True):
        for name in EVALUATIONS:
            group = [pair for pair in pairs if pair.honest == honest and pair.evaluation == name]
            cells = []
            for verdict in VERDICTS:
                there = [pair for pair in group if pair.verdict == verdict]
                cells.append(f"{len(there):>10} ({sum(pair.weak for pair in there):>3})  ")
            if group:
                lines.append(f"{'honest' if honest else 'artefact':<10}{name:<11}" + "".join(cells))
    return lines


def _strength(pair: Pair) -> str:
    return EVALUATIONS[pair.evaluation].strength


def _line(pair: Pair) -> str:
    said, remedy = (" -" if value is None else f"{100 * value:.0f}" for value in (pair.reported, pair.remedy))
    why = ", ".join(pair.fired) or "-"
    named = "" if pair.named == "-" else f" [{pair.named}]"
    return (
        f"{pair.network:<34}{pair.evaluation:<11}{100 * pair.clean:>6.0f}{100 * pair.truth:>6.0f}{said:>6}{remedy:>7}  "
        f"{pair.verdict:<13} {why}{named}"
    )
