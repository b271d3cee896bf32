"""A budget says what it is, and results give it back from the two values that they store of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from robustkd.contracts import AttemptBudget, Budget, Corruptions, EmbeddingRadius, PixelBudget, ThreatModel, UsageError
from robustkd.contracts.threat import stored_budget

CASES: list[tuple[Budget, tuple[str, float], str, str]] = [
    (PixelBudget("l2", 0.5), ("l2", 0.5), "l2 <= 0.5", "l2 eps 0.5"),
    (Corruptions(), ("corruption", 1.0), "corruptions", "corruptions"),
    (AttemptBudget(20), ("prompt", 20.0), "any wording, 20 attempts", "any wording, 20 attempts"),
    (AttemptBudget(1, "seed"), ("seed", 1.0), "any seed, 1 attempt", "any seed, 1 attempt"),
    (EmbeddingRadius(0.1), ("embeddings", 0.1), "embeddings <= 0.1", "embeddings <= 0.1"),
]


@pytest.mark.parametrize(("budget", "stored", "name", "plain"), CASES)
def test_a_budget_is_stored_read_back_and_named(budget, stored, name, plain):
    assert budget.stored == stored
    assert stored_budget(*stored) == budget
    assert (str(budget), str(ThreatModel(budget=budget)), budget.plain) == (name, name, plain)


def test_a_threat_model_in_pixels_needs_no_budget_to_be_named():
    assert ThreatModel() == ThreatModel("linf", 8 / 255) == ThreatModel(budget=PixelBudget())
    assert ThreatModel(norm="l2").budget == PixelBudget("l2")
    asked = ThreatModel("l1", 2.0, goal="targeted")
    assert (asked.norm, asked.eps, asked.space, asked.goal) == ("l1", 2.0, "pixels", "targeted")
    assert replace(asked, eps=3.0, goal="untargeted") == ThreatModel("l1", 3.0)


def test_what_a_budget_does_not_have_is_refused():
    asked = ThreatModel.by_prompt(20, "prefill")
    assert (asked.attempts, asked.space, asked.budget.points) == (20, "prefill", (1, 2, 5, 10))
    with pytest.raises(UsageError, match=r"20 attempts\) has no eps"):
        asked.eps  # noqa: B018
    with pytest.raises(UsageError, match="has no norm"):
        asked.norm  # noqa: B018
    with pytest.raises(UsageError, match=r"linf <= 0\.1\) has no attempts"):
        ThreatModel("linf", 0.1).attempts  # noqa: B018


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: PixelBudget("l3"),
        lambda: PixelBudget("linf", -1.0),
        lambda: PixelBudget("linf", float("nan")),
        lambda: AttemptBudget(0),
        lambda: AttemptBudget(3, "pixels"),
        lambda: EmbeddingRadius(float("inf")),
        lambda: ThreatModel(goal="both"),
        lambda: stored_budget("colour", 1.0),
    ],
)
def test_a_budget_that_cannot_be_is_refused(wrong):
    with pytest.raises(UsageError, match="threat model: "):
        wrong()
