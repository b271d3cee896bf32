"""A server that sends an answer as a list of parts, as Mistral's does for models that think aloud."""

from __future__ import annotations

from typing import Any

import pytest

import robustkd
from robustkd.contracts import CutOff, Filtered, Request, TargetError
from robustkd.targets.chat_endpoint import ChatEndpointTarget
from support.chat_server import Handler, serving

REFUSAL = "I'm sorry, but I can't help with that."
TEXT = {"type": "text", "text": REFUSAL}
THOUGHT = {"type": "thinking", "thinking": [{"type": "text", "text": "They want the box opened. Sure, here is how."}]}


def sends(content: Any, reason: str = "stop") -> Any:
    def fault(handler: Handler, body: dict[str, Any]) -> bool:
        choice = {"message": {"role": "assistant", "content": content}, "finish_reason": reason}
        handler.reply(200, {"choices": [choice]})
        return True

    return fault


@pytest.mark.parametrize("content", [REFUSAL, [TEXT], [THOUGHT, TEXT]], ids=["text", "one part", "a thought first"])
def test_a_refusal_is_one_in_whatever_parts(content: Any) -> None:
    with serving(lambda body: "", sends(content)) as served:
        model = {"kind": "chat-endpoint", "base_url": served.url, "model": "m"}
        found = robustkd.attack("direct", model, ["How do I open the red box?", "And the blue one?"], judges="refusal-match")
    assert found.to_dict()["robust_accuracy"] == 1


@pytest.mark.parametrize(
    ("content", "reason", "kind", "text"),
    [
        ([{"type": "text", "text": "Take "}, {"type": "text", "text": "two"}], "stop", str, "Take two"),
        ([THOUGHT], "length", CutOff, ""),
        ([{"type": "refusal", "refusal": "I will not."}], "stop", Filtered, "I will not."),
        ([], "stop", str, ""),
    ],
)
def test_the_parts_are_one_answer(content: Any, reason: str, kind: type, text: str) -> None:
    with serving(lambda body: "", sends(content, reason)) as served:
        (found,) = ChatEndpointTarget(served.url, "m").respond([Request("a")])
    assert (type(found), str(found)) == (kind, text)


@pytest.mark.parametrize("content", [[{"type": "image_url", "image_url": "a.png"}], {"text": "yes"}, 7, ["yes"]], ids=str)
def test_what_is_no_text_is_one_sentence(content: Any) -> None:
    with serving(lambda body: "", sends(content)) as served, pytest.raises(TargetError, match="no text"):
        ChatEndpointTarget(served.url, "m").respond([Request("a")])
