"""One request of several does not fit into the model's context: it is not judged, and the others are, by every attack."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from robustkd import plugins
from robustkd.contracts import Judge, PromptAttack, Prompts, ThreatModel
from robustkd.evaluation.prompts import evaluate_prompt_attack, prepare
from robustkd.targets import CausalLMTarget
from support.toy_language_model import toy_language_model

QUICK: dict[str, dict[str, Any]] = {
    "direct": {},
    "human-jailbreaks": {},
    "best-of-n": {},
    "prefill": {},
    "random-prompt": {"tokens": 4},
    "gcg": {"tokens": 4, "steps": 1, "width": 4, "top_k": 4},
    "random-search": {"tokens": 4, "steps": 2, "width": 2},
    "beast": {"tokens": 4},
    "autodan": {"generations": 2, "population": 2},
    "pair": {"attacker": "attacker", "rounds": 1},
    "embedding": {"steps": 1},
    "soft-prompt": {"steps": 1},
}
LONG = 1


class Speaks(Judge):
    """Complied when the answer is of more than one letter."""

    def complied(self, requests: Prompts, outputs: Any) -> np.ndarray:
        return np.array([len(text) > 1 for text in outputs])


@pytest.fixture(scope="module")
def model() -> CausalLMTarget:
    return toy_language_model(("say", "it", "hello", "I", "please", "cannot", "word"))


@pytest.mark.parametrize("kind", QUICK)
def test_the_others_are_attacked(model: CausalLMTarget, kind: str) -> None:
    columns = {"prompt": ("say it", "say " * 80, "hello"), "target": ("it hello",) * 3}
    requests, judges = Prompts(columns, np.zeros(3, dtype=np.int64)), {"speaks": Speaks()}
    batch = prepare(model, requests, np.arange(3), judges)
    attack = plugins.make("attacks", {"kind": kind, **QUICK[kind]}).with_targets({"attacker": model})
    assert isinstance(attack, PromptAttack)
    found = evaluate_prompt_attack(model, attack, batch, attack.threat_for(ThreatModel.by_prompt(2)), judges)
    assert found.outcome.unjudged.tolist() == [False, True, False]
    assert found.outcome.attempts is not None
    assert found.outcome.attempts.tolist()[LONG] == 0
    assert "context of 64" in found.transcripts[LONG].output
    assert not found.outcome.standing[LONG]


def test_alone_it_is_not_judged_and_nothing_fails(model: CausalLMTarget) -> None:
    requests = Prompts({"prompt": ("say " * 80,), "target": ("it hello",)}, np.zeros(1, dtype=np.int64))
    judges = {"speaks": Speaks()}
    batch = prepare(model, requests, np.arange(1), judges)
    for kind in ("direct", "prefill", "gcg", "beast", "random-prompt", "autodan", "embedding"):
        attack = plugins.make("attacks", {"kind": kind, **QUICK[kind]})
        found = evaluate_prompt_attack(model, attack, batch, attack.threat_for(ThreatModel.by_prompt(2)), judges)
        assert found.outcome.unjudged.tolist() == [True], kind
