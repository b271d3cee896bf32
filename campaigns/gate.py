"""Gates: bounds that a defense must clear, judged with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from robustkd.campaigns.spec import GateSpec
from robustkd.scoring.intervals import wilson
from robustkd.scoring.results import Results

GateOutcome = Literal["passed", "failed", "inconclusive"]


@dataclass(frozen=True)
class GateResult:
    """How a gate was judged; ``value`` is the mean over seeds, the interval the envelope of the seeds' own."""

    defense: str
    metric: str
    at_least: float
    outcome: GateOutcome
    value: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None


def judge_gates(gates: Sequence[GateSpec], results: Results) -> list[GateResult]:
    """Each gate: passed when the whole interval lies at or above the bound, failed when the whole interval lies below it.

    In between the campaign has too few samples to tell, which is ``inconclusive`` and not a failure; so is a missing number.
    """
    judged = []
    for gate in gates:
        rows = [row for row in results.defenses if row.defense == gate.defense]
        values = [getattr(row, gate.metric) for row in rows]
        if not rows or any(value is None for value in values):
            judged.append(GateResult(gate.defense, gate.metric, gate.at_least, "inconclusive"))
            continue
        intervals = [wilson(round(value * row.n), row.n) for value, row in zip(values, rows, strict=True)]
        low, high = min(pair[0] for pair in intervals), max(pair[1] for pair in intervals)
        outcome: GateOutcome = "passed" if low >= gate.at_least else "failed" if high < gate.at_least else "inconclusive"
        judged.append(GateResult(gate.defense, gate.metric, gate.at_least, outcome, sum(values) / len(values), low, high))
    return judged
