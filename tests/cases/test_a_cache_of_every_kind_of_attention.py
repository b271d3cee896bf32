"""Models that do not keep all keys and values: a search's losses are those of whole passes, or the search makes whole passes."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch

from robustkd import plugins
from robustkd.attacks.text.engine.slots import Slots
from robustkd.attacks.text.engine.suffix import Suffixes
from robustkd.attacks.text.engine.target_prefix import losses
from robustkd.contracts import Prompts, Request, ThreatModel
from robustkd.evaluation.prompts import evaluate_prompt_attack, prepare
from robustkd.targets import frozen
from robustkd.targets.prefix import PassCache
from support.attention_kinds import KINDS, WINDOW, model_of
from support.blind_judges import SaysNo

WORDS = tuple(f"w{number}" for number in range(20))
LONG = " ".join(WORDS[number % 17] for number in range(3 * WINDOW))
UNCACHED = {"Mamba", "RecurrentGemma"}
EVERY = list(KINDS)


class Nobody:
    def spend(self, rows: Any, forwards: int = 0, backwards: int = 0) -> None: ...


@pytest.fixture
def whole_passes(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call it, and from then on no cache is used."""
    return lambda: monkeypatch.setattr(PassCache, "prefix", lambda self, ids: None)


@pytest.mark.parametrize("kind", EVERY)
def test_the_losses_of_suffixes_are_those_of_whole_passes(
    kind: str, whole_passes: Any, caplog: pytest.LogCaptureFixture
) -> None:
    target = model_of(kind, WORDS)
    prompts, answers = [LONG, "w3 w1", f"w2 {LONG}"], ["w1 w2", "w4", "w5 w6 w7"]
    drawn = torch.randint(5, 25, (3, 4, 5), generator=torch.Generator().manual_seed(0))
    places, among = torch.arange(3), torch.ones(3, 4, dtype=torch.bool)

    def seen() -> list[torch.Tensor]:
        with frozen(target.module), caplog.at_level(logging.WARNING):
            suffixes = Suffixes(Slots(target, prompts), answers, places, Nobody())
            return [
                suffixes.losses(places, drawn, among),
                suffixes.gradient(places, drawn[:, 0]),
                suffixes.next_logprobs(places, drawn),
            ]

    cached = seen()
    said = [record.message for record in caplog.records if record.name == "robustkd.targets.prefix"]
    assert bool(said) == (kind in UNCACHED), said
    texts = [f"{prompts[row]} {target.chat.decode(drawn[row, column].tolist())}" for row in range(3) for column in range(4)]
    true = losses(target, texts, [answer for answer in answers for _ in range(4)])
    assert torch.allclose(cached[0].flatten(), true, atol=2e-5)
    whole_passes()
    for with_it, without in zip(cached, seen(), strict=True):
        assert torch.allclose(with_it, without, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", EVERY)
def test_an_answer_is_what_transformers_writes_and_does_not_depend_on_the_batch(kind: str) -> None:
    target = model_of(kind, WORDS)
    asked = [Request(text) for text in (LONG, "w3 w1", f"w2 {LONG} w9")]
    written = []
    for question in asked:
        ids = torch.tensor([target.encode(question.prompt).ids])
        every = target.module.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, pad_token_id=0
        )
        written.append(target.chat.decode(every[0, ids.shape[1] :].tolist()).strip())
    assert target.respond(asked) == written


@pytest.mark.parametrize("kind", ["Mistral", "Gemma3", "Qwen3Next", "Mamba"])
@pytest.mark.parametrize(
    "attack",
    [
        {"kind": "gcg", "tokens": 3, "steps": 2, "width": 4, "top_k": 8},
        {"kind": "random-search", "tokens": 3, "steps": 3, "width": 4},
        {"kind": "beast", "tokens": 3, "beams": 2, "branches": 3},
    ],
    ids=lambda attack: attack["kind"],
)
def test_an_attack_asks_what_it_asks_without_a_cache(kind: str, attack: dict[str, Any], whole_passes: Any) -> None:
    target = model_of(kind, WORDS)
    requests = Prompts({"prompt": (LONG, f"w4 {LONG}"), "target": ("w1 w2", "w3")}, np.zeros(2, dtype=np.int64))

    def asked() -> list[str]:
        judges = {"never": SaysNo()}
        batch = prepare(target, requests, np.arange(2), judges)
        plugin = plugins.make("attacks", attack)
        found = evaluate_prompt_attack(target, plugin, batch, ThreatModel.by_prompt(3), judges)
        return [transcript.prompt for transcript in found.transcripts]

    cached = asked()
    assert all(prompt not in requests["prompt"] for prompt in cached)
    whole_passes()
    assert asked() == cached
