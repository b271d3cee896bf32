"""A request's own system message reaches the chat template and the endpoint, and every attack keeps it and searches behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robustkd import plugins
from robustkd.attacks.text.engine.slots import Slots
from robustkd.attacks.text.engine.suffix import Suffixes
from robustkd.attacks.text.engine.target_prefix import losses
from robustkd.contracts import AttackError, DataError, PromptAttack, Prompts, Request, TargetError, ThreatModel
from robustkd.data.behaviors import COLUMNS, Behaviors, BehaviorsParams
from robustkd.evaluation.prompts import evaluate_prompt_attack, prepare
from robustkd.reporting.transcripts import PromptItem
from robustkd.targets import CausalLMTarget
from robustkd.targets.chat_endpoint import ChatEndpointTarget
from robustkd.targets.passes import PassCounter
from support.blind_judges import SaysNo
from support.toy_language_model import toy_language_model

SYSTEMS = ("please", "", "cannot word")
QUICK: dict[str, dict[str, Any]] = {
    "direct": {},
    "human-jailbreaks": {},
    "best-of-n": {},
    "encodings": {},
    "prefill": {},
    "random-prompt": {"tokens": 4},
    "gcg": {"tokens": 4, "steps": 1, "width": 4, "top_k": 4},
    "random-search": {"tokens": 4, "steps": 1, "width": 2},
    "beast": {"tokens": 2, "beams": 2, "branches": 2},
    "autodan": {"generations": 1, "population": 2},
    "embedding": {"steps": 1, "eps": [0.1]},
}


@pytest.fixture(scope="module")
def model() -> CausalLMTarget:
    return toy_language_model(("say", "it", "hello", "I", "please", "cannot", "word"), max_position_embeddings=128)


def requests() -> Prompts:
    columns = {"prompt": ("say it",) * 3, "target": ("it hello",) * 3, "system": SYSTEMS}
    return Prompts(columns, np.zeros(3, dtype=np.int64))


def test_the_template_shows_it_in_the_place_of_the_target_s_own(model: CausalLMTarget) -> None:
    asked = [{"role": "system", "content": "please"}, {"role": "user", "content": "say it"}]
    rendered = model.tokenizer.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
    assert model.encode("say it", system="please").ids == rendered
    said = CausalLMTarget(model.module, model.tokenizer, max_new_tokens=6, system="please")
    assert said.respond([Request("say it")]) == model.respond([Request("say it", system="please")])
    assert said.chat.told("please") is said.chat
    assert said.encode("say it", system="word").ids == model.encode("say it", system="word").ids


@pytest.mark.parametrize("kind", QUICK)
def test_an_attack_keeps_it_and_it_is_in_the_transcript(model: CausalLMTarget, kind: str, monkeypatch: Any) -> None:
    judges, put = {"never": SaysNo()}, []
    batch = prepare(model, requests(), np.arange(3), judges)
    respond = CausalLMTarget.respond
    monkeypatch.setattr(CausalLMTarget, "respond", lambda self, asked: put.extend(asked) or respond(self, asked))
    attack = plugins.make("attacks", {"kind": kind, **QUICK[kind]})
    assert isinstance(attack, PromptAttack)
    found = evaluate_prompt_attack(model, attack, batch, attack.threat_for(ThreatModel.by_prompt(1)), judges)
    assert {question.system for question in put} == set(SYSTEMS)
    assert tuple(item.system for item in found.transcripts) == SYSTEMS


def test_searches_see_the_loss_behind_it(model: CausalLMTarget) -> None:
    slots = Slots(model, ["say it"] * 3, SYSTEMS)
    places, ids = torch.arange(3), torch.tensor([model.tokenizer("hello word")["input_ids"]] * 3)
    searched = Suffixes(slots, ["it hello"] * 3, places, PassCounter(3))
    seen = searched.losses(places, ids[:, None], torch.ones(3, 1, dtype=torch.bool)).squeeze(1)
    expected = []
    for system in SYSTEMS:
        told = CausalLMTarget(model.module, model.tokenizer, system=system)
        expected.append(losses(told, ["say it hello word"], ["it hello"]))
    torch.testing.assert_close(seen, torch.cat(expected))
    assert slots.texts(places, ids[:, None]) == [["say it hello word"]] * 3
    assert len(set(seen.tolist())) == 3


def test_an_attack_may_not_set_it(model: CausalLMTarget) -> None:
    judges = {"never": SaysNo()}
    batch = prepare(model, requests(), np.arange(3), judges)
    attack = plugins.make("attacks", {"kind": "direct"})
    assert isinstance(attack, PromptAttack)
    attack.search = lambda target, batch, attempts, *rest: attempts(torch.tensor([0]), [Request("it", system="word")])  # type: ignore[method-assign]
    with pytest.raises(AttackError, match="sets the system message"):
        evaluate_prompt_attack(model, attack, batch, ThreatModel.by_prompt(1), judges)


def test_a_target_that_takes_none_is_not_asked(model: CausalLMTarget) -> None:
    deaf = CausalLMTarget(model.module, model.tokenizer)
    deaf.capabilities = frozenset({"respond"})
    with pytest.raises(TargetError, match="system message of their own"):
        prepare(deaf, requests(), np.arange(3), {"never": SaysNo()})


def test_the_server_is_sent_it() -> None:
    served = ChatEndpointTarget("http://localhost/v1", "toy", system="mine")
    bodies = [served.body(question)["messages"] for question in requests().asked()]
    assert [messages[0]["content"] for messages in bodies] == ["please", "mine", "cannot word"]
    turns = served.body(Request("c", turns=(("a", "b"),)))["messages"]
    assert [message["role"] for message in turns] == ["system", "user", "assistant", "user"]
    assert [message["content"] for message in turns] == ["mine", "a", "b", "c"]


def test_it_is_a_column_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "requests.csv"
    file.write_text("prompt,system\nsay it,be kind\nhello,\n")
    found = Behaviors(BehaviorsParams(file=file)).load().test
    assert found["system"] == ("be kind", "")
    plain = tmp_path / "plain.csv"
    plain.write_text("prompt,system\nsay it,\nhello,\n")
    assert tuple(Behaviors(BehaviorsParams(file=plain)).load().test.columns) == COLUMNS
    with pytest.raises(DataError, match="no training learns"):
        Behaviors(BehaviorsParams(file=plain, training=file)).load()


def test_the_report_shows_it() -> None:
    item = PromptItem("m", "a", 0, "c", "it", "it", "no", 1, False, system="be kind", turns=[["a", "b"]])
    assert item.said_before == "system: be kind\nuser: a\nassistant: b"
