"""A search against controls with as many attempts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np

from robustkd import plugins
from robustkd.contracts import AttackEvidence, CheckContext, Finding, PromptAttack, Prompts, ThreatModel
from robustkd.evaluation.checks import make_check

LABELS = np.repeat(np.arange(6), 20)


class Search(PromptAttack):
    modalities = ("text-to-image",)

    def search(self, *arguments: Any) -> None: ...


class Control(Search):
    control: ClassVar[bool] = True


def evidence(name: str, attack: PromptAttack, each: int, attempts: int = 20, after: int = 0) -> AttackEvidence:
    """It breaks ``each`` of the 20 requests for each of 6 concepts, from number ``after`` on."""
    broken = np.tile(np.roll(np.arange(20) < each, after), 6)
    threat = attack.threat_for(ThreatModel.by_prompt(attempts))
    nothing = np.zeros(120)
    return AttackEvidence(
        name, "fixed-budget", "unknown", True, attack.iterative, threat, nothing == 0, ~broken, nothing, attack=attack
    )


def found(*attacks: AttackEvidence) -> Finding:
    requests = Prompts({"prompt": ("a",) * 120}, LABELS)
    batch = SimpleNamespace(requests=requests)
    return make_check("chance-beats-search").run(
        CheckContext(None, batch, ThreatModel.by_prompt(20), {one.name: one for one in attacks}, 0)  # type: ignore[arg-type]
    )


def test_a_search_that_earns_its_success_is_told_by_how_much() -> None:
    finding = found(evidence("weak", Search(), 4), evidence("strong", Search(), 15), evidence("random", Control(), 5))
    assert not finding.fired
    told = finding.evidence["controls"]["random"]
    assert (finding.evidence["search"], told["broken"], told["share ahead of it"]) == ("strong", 30, 0.5)
    assert 0.4 < told["share at least"] < 0.5 < told["share at most"] < 0.6


def test_chance_that_does_as_well_is_a_note_and_chance_that_does_better_a_warning() -> None:
    near = found(evidence("search", Search(), 6), evidence("random", Control(), 5, after=10))
    assert (near.fired, near.severity) == (True, "info")
    assert near.evidence["explanation"] == (
        "search breaks 36 of 120 requests, with as many attempts random 30; random cannot be told from it"
    )
    ahead = found(evidence("search", Search(), 5), evidence("random", Control(), 9))
    assert (ahead.fired, ahead.severity) == (True, "warning")
    assert ahead.fix


def test_where_nothing_breaks_nobody_is_beaten() -> None:
    assert not found(evidence("search", Search(), 0), evidence("random", Control(), 0)).fired


def test_other_spaces_count_as_controls_and_other_numbers_of_attempts_do_not() -> None:
    seeds, nothing = plugins.make("attacks", {"kind": "seed-search"}), plugins.make("attacks", {"kind": "no-attack"})
    finding = found(evidence("search", Search(), 15), evidence("seeds", seeds, 3), evidence("asked", nothing, 9))
    assert list(finding.evidence["controls"]) == ["seeds"]
    assert not found(evidence("search", Search(), 1), evidence("random", Control(), 9, attempts=50)).applicable
    assert not found(evidence("search", Search(), 5)).applicable
