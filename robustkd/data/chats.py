"""Conversations in JSON lines: what is asked, and what a good assistant says.

    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}
    {"prompt": "Hi", "response": "Hello."}

Of a longer conversation the first request and the answer to it are taken; a message of the system before it is passed over.
"""

from __future__ import annotations

from pathlib import Path

from robustkd.contracts import DataError
from robustkd.contracts.json_value import JsonObject
from robustkd.data.tables import read_jsonl

_FIX = (
    'give {"prompt": "..", "response": ".."}, or '
    '{"messages": [{"role": "user", "content": ".."}, {"role": "assistant", "content": ".."}]}'
)


def read_chats(file: Path) -> list[tuple[str, str]]:
    """Requests and their answers, in the file's order.

    Raises:
        DataError: the file cannot be read, is empty, or a line is no conversation; it names the line.
    """
    chats = [_chat(line, place) for place, line in read_jsonl(file)]
    if not chats:
        raise DataError(f"{file} is empty", fix=_FIX)
    return chats


def _chat(line: JsonObject, place: str) -> tuple[str, str]:
    if "messages" in line:
        return _turn(line["messages"], place)
    for key in ("prompt", "response"):
        if key not in line:
            raise DataError(f"{place} has no '{key}'", fix=_FIX)
    return _text(line["prompt"], f"{place}: prompt"), _text(line["response"], f"{place}: response")


def _turn(messages: object, place: str) -> tuple[str, str]:
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise DataError(f"{place}: messages are no list of objects", fix=_FIX)
    turns = [message for message in messages if message.get("role") != "system"]
    if [message.get("role") for message in turns[:2]] != ["user", "assistant"]:
        raise DataError(f"{place} does not begin with a user's message and the assistant's answer", fix=_FIX)
    prompt, response = (_text(message.get("content"), f"{place}: {message['role']}'s content") for message in turns[:2])
    return prompt, response


def _text(value: object, what: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{what} is no text" if not isinstance(value, str) else f"{what} is empty", fix=_FIX)
    return value
