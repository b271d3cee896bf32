"""A served model: what is sent, what is kept, and each way in which a server fails."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from robustkd import plugins
from robustkd.contracts import CutOff, Filtered, Request, TargetError, Unanswered, UsageError
from robustkd.contracts.capability import ORDINARY
from robustkd.targets.answer_cache import AnswerCache
from robustkd.targets.chat_endpoint import ChatEndpointTarget, answer_in
from robustkd.targets.chat_server import Connection
from support.chat_server import Served, cut, filtered, nth, serving, slow, status

SECRET = "sk-very-secret-0123456789"


@pytest.fixture
def echo() -> Iterator[Served]:
    with serving(lambda body: f"echo {body['messages'][-1]['content']}") as server:
        yield server


def target(
    server: Served, kept: Path | None = None, *, connection: Connection | None = None, **params: object
) -> ChatEndpointTarget:
    made = ChatEndpointTarget(server.url, "toy", **params)  # type: ignore[arg-type]
    return made.connect(connection or Connection(retries=2, wait=0.01, timeout=0.3), kept)


def test_what_is_sent(echo: Served) -> None:
    one = target(echo, system="be kind", max_new_tokens=9, options={"top_p": 0.5}, prefill="continue")
    assert one.respond([Request("a"), Request("b", prefill="Sure")]) == ["echo a", "echo Sure"]
    plain, begun = sorted(map(json.loads, echo.asked), key=lambda body: len(body["messages"]))
    shared = {"model": "toy", "max_tokens": 9, "temperature": 0.0, "top_p": 0.5}
    first = {"role": "system", "content": "be kind"}
    assert plain == shared | {"messages": [first, {"role": "user", "content": "a"}]}
    assert begun == shared | {"continue_final_message": True, "add_generation_prompt": False} | {
        "messages": [first, {"role": "user", "content": "b"}, {"role": "assistant", "content": "Sure"}]
    }
    bare = target(echo, temperature=None, length="max_completion_tokens", prefill="prefix").body(Request("b", prefill="So"))
    assert bare.keys() == {"model", "messages", "max_completion_tokens"}
    assert bare["messages"][-1] == {"role": "assistant", "content": "So", "prefix": True}
    with pytest.raises(TargetError, match="sets the beginning of the answer"):
        target(echo).respond([Request("b", prefill="So")])


def test_nothing_is_asked_twice_by_whatever_process(echo: Served, tmp_path: Path) -> None:
    asked = [Request(f"{number % 5}") for number in range(20)]
    answers = target(echo, tmp_path).respond(asked)
    assert answers == [f"echo {number % 5}" for number in range(20)]
    assert echo.received == 5
    assert target(echo, tmp_path, connection=Connection(concurrency=1)).respond(asked) == answers
    assert target(echo, tmp_path, max_new_tokens=3).respond(asked[:1]) == answers[:1]
    assert echo.received == 6  # another request


def test_an_answer_that_was_not_written_to_its_end_is_asked_again(tmp_path: Path) -> None:
    kept = AnswerCache(tmp_path)
    assert kept.get({"a": 1}, lambda: {"said": "one"}) == {"said": "one"}
    (file,) = tmp_path.glob("*/*.json")
    file.write_bytes(file.read_bytes()[:-3])
    assert list(kept) == []
    assert kept.get({"a": 1}, lambda: {"said": "two"}) == {"said": "two"}
    assert list(kept) == [({"a": 1}, {"said": "two"})]


def test_whoever_is_killed_while_asking_leaves_the_answer_to_others(tmp_path: Path) -> None:
    kept, (reading, writing) = AnswerCache(tmp_path), os.pipe()
    if not (child := os.fork()):
        kept.get({"a": 1}, lambda: {"told": os.write(writing, b"."), "slept": signal.pause()})
        os._exit(1)
    os.read(reading, 1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert kept.get({"a": 1}, lambda: {"said": "one"}) == {"said": "one"}


@pytest.mark.parametrize(
    "fault",
    [status(429, Retry_After="0"), status(429), status(500), status(503, b"<html>busy</html>"), slow(0.6), cut],
    ids=["429-with-retry-after", "429", "500", "503", "slow", "cut"],
)
def test_what_fails_once_is_asked_again(echo: Served, fault: object) -> None:
    echo.fault = nth(1, fault)  # type: ignore[arg-type]
    assert target(echo).respond([Request(text) for text in "abc"]) == ["echo a", "echo b", "echo c"]
    assert echo.received == 4


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (status(500, {"error": {"message": "out of order"}}), r"answers with 500 \(out of order\), after 2 repetitions"),
        (status(429, {"message": "too many"}), r"answers with 429 \(too many\)"),
        (slow(0.6), r"gives no answer \(ReadTimeoutError"),
        (cut, r"gives no answer \((ProtocolError|IncompleteRead)"),
        (status(404, {"error": "no such model"}), r"refuses the request \(404: no such model\)"),
        (status(400, {"error": {"message": "temperature is not supported"}}), "refuses the request .400: temperature"),
        (status(302, b"", Location="http://elsewhere.example/v1"), r"refuses the request \(302"),
        (status(200, b"hello"), "answers in another format: hello"),
        (status(200, {"choices": []}), "answers in another format"),
        (status(401), r"wants a key \(401: no\), and none is given"),
    ],
)
def test_what_fails_always_is_one_sentence_and_keeps_what_was_answered(
    echo: Served, tmp_path: Path, fault: object, said: str
) -> None:
    target(echo, tmp_path).respond([Request("a")])
    echo.fault = fault  # type: ignore[assignment]
    with pytest.raises(TargetError, match=said) as refused:
        target(echo, tmp_path).respond([Request("a"), Request("b")])
    assert refused.value.fix
    assert "\n" not in refused.value.message
    assert len(list(AnswerCache(tmp_path))) == 1


def test_a_server_that_is_not_there_is_one_sentence() -> None:
    with serving(lambda body: "") as gone:
        pass
    with pytest.raises(TargetError, match=r"gives no answer .*refused"):
        target(gone).respond([Request("a")])


def test_a_filter_and_a_full_context_are_no_failures(echo: Served) -> None:
    echo.fault = filtered
    (held,) = target(echo).respond([Request("a")])
    assert isinstance(held, Filtered)
    azure = {
        "error": {"code": None, "message": "The response was filtered", "innererror": {"code": "ResponsibleAIPolicyViolation"}}
    }
    echo.fault = status(400, azure)
    (held,) = target(echo).respond([Request("a")])
    assert isinstance(held, Filtered)
    echo.fault = status(400, {"error": {"message": "This model's maximum context length is 8 tokens."}})
    (none,) = target(echo).respond([Request("a")])
    assert isinstance(none, Unanswered)
    assert "maximum context length" in none


@pytest.mark.parametrize(
    ("message", "reason", "kind", "text"),
    [
        ({"content": "yes"}, "stop", str, "yes"),
        ({"content": "yes"}, "length", CutOff, "yes"),
        ({"content": None}, "length", CutOff, ""),
        ({"content": None, "tool_calls": []}, "tool_calls", str, ""),
        ({"content": None, "refusal": "I will not."}, "stop", Filtered, "I will not."),
        ({"content": "Take two"}, "content_filter", CutOff, "Take two"),  # what was let through has been shown
        ({}, "content_filter", Filtered, "[held back by a content filter]"),
    ],
)
def test_the_answer_in_a_reply(message: dict[str, object], reason: str, kind: type, text: str) -> None:
    found = answer_in({"choices": [{"message": message, "finish_reason": reason}]})
    assert (type(found), str(found)) == (kind, text)


def test_the_key_is_sent_and_told_to_nobody(echo: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", SECRET)
    knows = Connection("MY_API_KEY", retries=0)
    target(echo, tmp_path, connection=knows).respond([Request("a")])
    assert echo.keys == {f"Bearer {SECRET}"}
    echo.fault = status(401, {"error": {"message": f"Incorrect API key provided: {SECRET}"}})
    with pytest.raises(TargetError, match="the variable MY_API_KEY holds another one") as refused:
        target(echo, tmp_path, connection=knows).respond([Request("b")])
    monkeypatch.delenv("MY_API_KEY")
    with pytest.raises(TargetError, match="the variable MY_API_KEY is not set"):
        target(echo, tmp_path, connection=knows).respond([Request("b")])
    written = [file.read_text() for file in tmp_path.rglob("*") if file.is_file()]
    assert not any(SECRET in text for text in (str(refused.value), json.dumps(target(echo).card()), *written))


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"base_url": "localhost:8000/v1"}, "give the address of a server"),
        ({"base_url": "https://me:secret@host/v1"}, "leave the password out"),
        ({"key": "sk-123"}, "key"),
        ({"key": "HOME"}, "key"),
        ({"concurrency": 0}, "concurrency"),
    ],
)
def test_parameters_that_cannot_be_meant(params: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        plugins.make("defenses", {"kind": "chat-endpoint", "base_url": "http://localhost/v1", "model": "m", **params})


def test_how_a_server_is_asked_is_no_part_of_what_a_result_is_identified_by() -> None:
    plain = {"kind": "chat-endpoint", "base_url": "http://localhost/v1", "model": "m"}
    one = plugins.make("defenses", plain)
    other = plugins.make("defenses", plain | {"key": "MY_API_KEY", "concurrency": 2, "timeout": 3, "retries": 1})
    assert one.params.model_dump() == other.params.model_dump()


def test_a_model_that_is_sampled_is_asked_the_same_again_with_other_seeds(echo: Served, tmp_path: Path) -> None:
    drawn = iter(range(100))
    echo.answer = lambda body: f"drawn {next(drawn)}"
    one, asked = (
        target(echo, tmp_path, temperature=1.0),
        [Request("a", seed=1), Request("a", seed=2), Request("a"), Request("a")],
    )
    answers = one.respond(asked)
    assert (len(set(answers)), answers[2]) == (3, answers[3])
    assert one.respond(asked) == answers
    attack = plugins.make("attacks", {"kind": "seed-search"})
    assert attack.missing(one.capabilities) == []
    assert attack.missing(target(echo).capabilities) == attack.missing(ORDINARY["text"]) == ["sampling"]
