"""DeepSeek-R1's template begins the thought itself: what a search aims at is the answer behind it, and so is what a judge reads."""

from __future__ import annotations

import pytest

from robustkd.targets import CausalLMTarget
from robustkd.targets.chat import Chat
from support.toy_language_model import TEMPLATE, toy_language_model

THINKS = TEMPLATE.replace("<assistant> {% endif %}", "<assistant> <think>\n{% endif %}")


@pytest.fixture
def chat() -> Chat:
    plain = toy_language_model(("say", "it", "hello", "<think>", "</think>"))
    plain.tokenizer.chat_template = THINKS
    return CausalLMTarget(plain.module, plain.tokenizer, max_new_tokens=6).chat


def text(chat: Chat, *said: str) -> str:
    return " ".join(chat.tokenizer.decode(chat.encode(*said).ids).split())


def test_the_answer_is_behind_the_thought(chat: Chat) -> None:
    assert text(chat, "say it").endswith("<assistant> <think>")
    assert "<think> </think> hello" in text(chat, "say it", "hello")
    found = chat.encode("say it", "hello")
    assert chat.tokenizer.decode(found.ids[found.completion]).split()[0] == "hello"
    begun = chat.encode("say it", "hello", "say")
    assert "<think> </think> say hello" in " ".join(chat.tokenizer.decode(begun.ids).split())
    assert found.ids[: len(chat.encode("say it").ids)] == chat.encode("say it").ids


def test_an_answer_with_a_thought_of_its_own_is_left_as_it_is(chat: Chat) -> None:
    assert "<think> it </think> hello" in text(chat, "say it", "it </think> hello")
