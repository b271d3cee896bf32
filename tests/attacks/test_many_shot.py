"""Many-shot jailbreaking: what stands before the request, how much of it fits, and its control."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robustkd import plugins
from robustkd.attacks.text.conversation.many_shot import SECRETS, SUMS
from robustkd.contracts import Capabilities, DataError, Judge, PromptAttack, Prompts, Request, ThreatModel, UsageError
from robustkd.evaluation.images import Evaluation
from robustkd.evaluation.judging import PromptOutcome
from robustkd.evaluation.prompts import evaluate_prompt_attack, prepare
from robustkd.targets import CausalLMTarget
from robustkd.targets.chat_endpoint import ChatEndpointTarget
from robustkd.targets.chat_server import Connection
from support.chat_server import serving
from support.toy_language_model import toy_language_model


class Shown(Judge):
    """Complied when the answer says what the shots say."""

    def complied(self, requests: Prompts, outputs: Any) -> np.ndarray:
        return np.array(["Sure, here is" in text for text in outputs])


JUDGES: dict[str, Judge] = {"shown": Shown()}


def requests(*prompts: str) -> Prompts:
    return Prompts({"prompt": prompts}, np.zeros(len(prompts), dtype=np.int64))


def attacked(target: Any, asking: Prompts, attempts: int = 5, **params: Any) -> Evaluation[PromptOutcome]:
    attack = plugins.make("attacks", {"kind": "many-shot", **params})
    assert isinstance(attack, PromptAttack)
    batch = prepare(target, asking, np.arange(len(asking)), JUDGES)
    return evaluate_prompt_attack(target, attack, batch, ThreatModel.by_prompt(attempts), JUDGES)


@pytest.fixture(scope="module")
def model() -> CausalLMTarget:
    return toy_language_model(("say", "it", "hello", "I", "please", "cannot", "word"), max_position_embeddings=128)


def imitating(body: dict[str, Any]) -> str:
    """Gives way behind nine answers that gave way."""
    given = sum(message["content"].startswith("Sure, here is") for message in body["messages"])
    return "Sure, here is it" if given > 8 else "I'm sorry."


def test_a_model_that_imitates_its_context_falls_to_many_and_not_to_few_or_harmless_shots() -> None:
    with serving(imitating) as server:
        target = ChatEndpointTarget(server.url, "toy").connect(Connection(retries=0))
        found = attacked(target, requests("a", "b"))
        assert found.outcome.success.all()
        assert found.outcome.attempts is not None
        assert found.outcome.attempts.tolist() == [2, 2]  # 4 shots, then 16
        turns = found.transcripts[0].turns
        assert len(turns) == 16
        assert set(map(tuple, turns)) <= set(SECRETS)
        assert list(turns) != list(found.transcripts[1].turns)  # each has an order of its own
        assert not attacked(target, requests("a", "b"), shots=[8]).outcome.success.any()
        control = attacked(target, requests("a", "b"), harmless=True)
        assert control.outcome.standing.all()
        assert len(control.transcripts[0].turns) == 64
        assert set(map(tuple, control.transcripts[0].turns)) == set(SUMS)


def test_the_turns_are_laid_out_by_the_template(model: CausalLMTarget) -> None:
    turns = (("say it", "hello"), ("please", "word it"))
    messages = [
        {"role": role, "content": text} for turn in turns for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    messages.append({"role": "user", "content": "hello"})
    expected = model.tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert model.chat.told("", turns).encode("hello").ids == expected


def test_there_are_as_many_shots_as_leave_room_for_an_answer(model: CausalLMTarget, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = attacked(model, requests("say it", "say " * 115, "hello"), shots=[2, 200])
    # The request and the answer's tokens stay; a turn of the built-in ones is 2 roles, an end, and its words.
    for row, asked in ((0, "say it"), (2, "hello")):
        item = found.transcripts[row]
        turns = tuple((user, answer) for user, answer in item.turns)
        assert found.outcome.attempts is not None
        assert found.outcome.attempts[row] == 2
        assert 2 < len(turns) < 64
        used = len(model.chat.told("", turns).encode(asked).ids) + model.max_new_tokens
        assert used <= 128 < used + max(len(f"- {' '.join(pair)} - -".split()) for pair in SECRETS)
    assert found.outcome.attempts is not None
    assert (found.outcome.attempts[1], found.outcome.unjudged[1]) == (0, True)
    assert "do not fit into the context" in found.transcripts[1].output
    assert "fewer shots than 200" in caplog.text
    assert "3 of 3" in caplog.text


def test_pairs_of_a_file_without_the_request_itself(model: CausalLMTarget, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": text, "response": "word"}) for text in ("hello", "Say  it", "please")))
    found = attacked(model, requests("say it"), file=file, shots=[3])
    assert sorted(map(tuple, found.transcripts[0].turns)) == [("hello", "word"), ("please", "word")]
    table = tmp_path / "pairs.csv"
    table.write_text("prompt,response\nplease,word it\n")
    (item,) = attacked(model, requests("say it"), file=table, shots=[1], form="text").transcripts
    assert item.prompt == "User: please\nAssistant: word it\n\nUser: say it\nAssistant:"
    assert not item.turns
    table.write_text("prompt,reply\nplease,word it\n")
    with pytest.raises(DataError, match="no column 'response'"):
        attacked(model, requests("say it"), file=table)
    with pytest.raises(UsageError, match="shots"):
        plugins.make("attacks", {"kind": "many-shot", "shots": [0]})


def test_turns_need_a_conversation_and_a_dialogue_in_the_text_none() -> None:
    answers: Capabilities = frozenset({"respond"})
    assert plugins.make("attacks", {"kind": "many-shot"}).missing(answers) == ["conversation"]
    assert plugins.make("attacks", {"kind": "many-shot", "form": "text"}).missing(answers) == []


def test_the_harmless_one_is_a_control() -> None:
    kinds = [plugins.make("attacks", {"kind": "many-shot", "harmless": harmless}) for harmless in (False, True)]
    assert [kind.control for kind in kinds if isinstance(kind, PromptAttack)] == [False, True]


def test_a_shot_changes_what_the_model_answers(model: CausalLMTarget) -> None:
    turns = (("say it", "hello word"), ("please", "hello word"))
    assert model.respond([Request("it")]) != model.respond([Request("it", turns=turns)])
