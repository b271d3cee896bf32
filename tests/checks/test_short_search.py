"""A search for prompts that was stopped before it could find any."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from robustkd.contracts import AttackEvidence, CheckContext, Finding, ThreatModel
from robustkd.evaluation.checks import make_check

N, ATTEMPTS = 100, 20


def evidence(name: str, took: list[int], passes: int = 5000, gradients: bool = True) -> AttackEvidence:
    """It broke as many requests as ``took`` has numbers, each after so many attempts."""
    broken = np.arange(N) < len(took)
    distance = np.full(N, np.inf)
    distance[: len(took)] = took
    return AttackEvidence(
        name,
        "fixed-budget",
        "unknown",
        gradients,
        gradients,
        ThreatModel.by_prompt(ATTEMPTS),
        np.ones(N, dtype=bool),
        ~broken,
        distance,
        passes=np.full(N, passes),
    )


def found(*attacks: AttackEvidence, text: bool = True) -> Finding:
    target = SimpleNamespace(capabilities=frozenset({"respond", "log-probabilities"} if text else {"respond"}))
    context = CheckContext(target, range(N), ThreatModel.by_prompt(ATTEMPTS), {one.name: one for one in attacks}, 0)  # type: ignore[arg-type]
    return make_check("short-search").run(context)


def test_a_search_that_breaks_nothing_more_in_its_second_half_was_long_enough() -> None:
    assert found(evidence("gcg", [1] * 30 + [12, 19])).outcome == "quiet"


def test_one_that_is_still_rising_was_not() -> None:
    finding = found(evidence("gcg", [1] * 30 + [11, 15, 19]))
    assert (finding.outcome, finding.severity) == ("fired", "warning")
    assert "gcg breaks 3 of 100 requests in the second half" in finding.explanation


def test_the_longest_search_counts_and_a_model_without_probabilities_is_not_searched_by_candidates() -> None:
    short = evidence("gcg", [], passes=192)
    assert "192 passes" in found(short).explanation
    assert found(short, evidence("random-search", [], passes=1600)).outcome == "quiet"
    assert found(short, text=False).outcome == "quiet"


def test_what_asks_once_is_no_search() -> None:
    assert found(evidence("direct", [], gradients=False)).outcome == "does not apply"
