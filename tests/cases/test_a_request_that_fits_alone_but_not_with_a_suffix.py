"""A request that fits into the context alone, but not with what an attack adds, is not judged there; the others are attacked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from robustkd import plugins
from robustkd.attacks.text.engine.vocabulary import NoSuffix, Vocabulary
from robustkd.contracts import GenerativeTarget, Judge, PromptAttack, Prompts, ThreatModel
from robustkd.evaluation.images import Evaluation
from robustkd.evaluation.judging import PromptOutcome
from robustkd.evaluation.prompts import evaluate_prompt_attack, prepare
from robustkd.targets import CausalLMTarget
from support.answers_by_rule import ByRule
from support.blind_judges import SaysNo
from support.toy_language_model import toy_language_model

QUICK: dict[str, dict[str, Any]] = {
    "random-prompt": {"tokens": 8},
    "gcg": {"tokens": 8, "steps": 1, "width": 4, "top_k": 4},
    "random-search": {"tokens": 8, "steps": 1, "width": 2},
    "beast": {"tokens": 8, "beams": 1, "branches": 2},
    "embedding": {"steps": 1, "eps": [0.1], "slots": 8},
    "soft-prompt": {"steps": 1, "slots": 8},
}
LONG = 1


def attacked(model: GenerativeTarget, kind: str, requests: Prompts, attempts: int = 2) -> Evaluation[PromptOutcome]:
    judges: dict[str, Judge] = {"never": SaysNo()}
    batch = prepare(model, requests, np.arange(len(requests)), judges)
    attack = plugins.make("attacks", {"kind": kind, **QUICK[kind]})
    assert isinstance(attack, PromptAttack)
    return evaluate_prompt_attack(model, attack, batch, attack.threat_for(ThreatModel.by_prompt(attempts)), judges)


def asking(*prompts: str) -> Prompts:
    return Prompts({"prompt": prompts, "target": ("it hello",) * len(prompts)}, np.zeros(len(prompts), dtype=np.int64))


@pytest.fixture(scope="module", params=["rotary", "learned"])
def model(request: Any) -> CausalLMTarget:
    """Of positions that are computed, and of positions in a table, beyond which a pass fails."""
    words = ("say", "it", "hello", "I", "please", "cannot", "word")
    made = toy_language_model(words)
    if request.param == "rotary":
        return made
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(made.tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=64, initializer_range=0.5)
    return CausalLMTarget(GPT2LMHeadModel(config).eval(), made.tokenizer, max_new_tokens=4)


@pytest.mark.parametrize("kind", QUICK)
def test_it_is_not_judged_and_the_others_are_attacked(model: CausalLMTarget, kind: str) -> None:
    prompts = ("say it", "say " * 58, "hello")
    found = attacked(model, kind, asking(*prompts))
    assert found.outcome.unjudged.tolist() == [False, True, False]
    assert not found.outcome.standing[LONG]
    assert found.outcome.standing[[0, 2]].all()
    assert "longer than the context of 64 tokens" in found.transcripts[LONG].output
    assert found.transcripts[LONG].verdicts == {"never": None}
    alone = attacked(model, kind, asking(prompts[0], prompts[2]))
    if kind == "random-prompt":  # its streams go by the place in the data
        assert found.transcripts[0] == alone.transcripts[0]


def test_one_behind_which_nothing_can_be_written_is_left_alone(model: CausalLMTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = Vocabulary.random_suffixes

    def picky(self: Vocabulary, slots: Any, *rest: Any) -> Any:
        if odd := [place for place, prompt in enumerate(slots.prompts) if "cannot" in prompt]:
            raise NoSuffix(odd)
        return draw(self, slots, *rest)

    monkeypatch.setattr(Vocabulary, "random_suffixes", picky)
    for kind in ("random-prompt", "gcg"):
        found = attacked(model, kind, asking("say it", "I cannot", "hello"))
        assert found.outcome.unjudged.tolist() == [False, True, False], kind
        assert found.outcome.attempts is not None
        assert found.outcome.attempts.tolist() == [2, 0, 2], kind
        assert "no random words" in found.transcripts[LONG].output


class Deaf(ByRule):
    """Answers, and is no language model of ours."""

    capabilities = frozenset({"respond"})


def test_random_words_need_no_tokenizer() -> None:
    target = Deaf(lambda asked: "no")
    attacked(target, "random-prompt", asking("say it", "hello"), 3)
    texts = [question.prompt for question in target.noted]
    words = [text.removeprefix("say it ").split() for text in texts if text.startswith("say it ")]
    assert len(words) == 3
    assert all(len(line) == 8 and all(word.isalpha() and word.isascii() and len(word) <= 8 for word in line) for line in words)
    assert len({tuple(line) for line in words}) == 3
