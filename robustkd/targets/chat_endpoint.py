"""A language model that is only served: it is asked by the protocol of OpenAI's chat completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

from typing_extensions import override

from robustkd.contracts import (
    Capabilities,
    Capability,
    Card,
    CutOff,
    Filtered,
    GenerativeTarget,
    Request,
    TargetError,
    Unanswered,
)
from robustkd.contracts.json_value import JsonObject
from robustkd.lazy import nn
from robustkd.targets.answer_cache import AnswerCache
from robustkd.targets.chat_server import ChatServer, Connection

Prefill = Literal["none", "last-message", "continue", "prefix"]
PREFILLS: Mapping[Prefill, Mapping[str, Any]] = {
    "none": {},
    "last-message": {},
    "continue": {"continue_final_message": True, "add_generation_prompt": False},
    "prefix": {},
}
"""What a request says beside its messages where the last one is the beginning of the answer."""
_THOUGHTS = frozenset({"thinking", "redacted_thinking", "reasoning"})
"""What the parts of an answer are called that hold a thought."""
_SHOWN = 200
Length = Literal["max_tokens", "max_completion_tokens"]


def capabilities(prefill: Prefill, temperature: float | None) -> Capabilities:
    """What a served model can be asked for."""
    found: set[Capability] = {"respond", "conversation"}
    if prefill != "none":
        found.add("prefill")
    if temperature != 0:
        found.add("sampling")
    return frozenset(found)


class ChatEndpointCard(Card):
    """The card of a served model: who is asked and how, without a key."""

    base_url: str
    model: str
    system: str
    max_new_tokens: int
    temperature: float | None
    options: JsonObject
    length: Length
    prefill: Prefill


class ChatEndpointTarget(GenerativeTarget):
    """A model behind a server.

    Args:
        base_url: up to and with ``/v1``.
        model: what the server calls it.
        system: a message from the system before the user's, "" for none.
        max_new_tokens: how long an answer may be.
        temperature: of the sampling; None: not said, so that it is the server's own.
        options: what a request says beside this.
        length: what the server calls ``max_new_tokens``.
        prefill: how it is told the beginning of an answer: see ``robustkd describe chat-endpoint``.
    """

    kind = "chat-endpoint"

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        system: str = "",
        max_new_tokens: int = 128,
        temperature: float | None = 0.0,
        options: Mapping[str, Any] | None = None,
        length: Length = "max_tokens",
        prefill: Prefill = "none",
    ) -> None:
        self.module = nn.Identity()
        self.base_url, self.model, self.system, self.max_new_tokens = base_url, model, system, max_new_tokens
        self.temperature, self.options, self.length, self.prefill = temperature, dict(options or {}), length, prefill
        self.capabilities = capabilities(prefill, temperature)
        self.connect(Connection())

    def connect(self, connection: Connection, kept: Path | None = None) -> Self:
        """Say how the server is asked from now on, and the folder where its answers are kept, None for nowhere; returns itself."""
        self._server = ChatServer(self.base_url, connection)
        self._kept = None if kept is None else AnswerCache(kept)
        return self

    def respond(self, asked: Sequence[Request]) -> list[str]:
        """What the server answers; several are asked at once.

        One that was cut off is a ``CutOff``; one that a filter held back, or that the model declined by the protocol, is a
        ``Filtered``; to a request that does not fit into the context there is an ``Unanswered``.

        Raises:
            TargetError: see ``ChatServer``; or a request asks for what a served model cannot be given.
        """
        pool = ThreadPoolExecutor(self._server.connection.concurrency)
        try:
            return list(pool.map(self._answer, asked))
        finally:  # after an error, those that have not begun are not asked
            pool.shutdown(cancel_futures=True)

    def _answer(self, asked: Request) -> str:
        body = self.body(asked)
        ask = partial(self._server, body)
        reply = ask() if self._kept is None else self._kept.get({"url": self.base_url, **body}, ask)
        return answer_in(reply)

    def body(self, asked: Request) -> dict[str, Any]:
        """What is sent to the server for a request.

        Raises:
            TargetError: it sets embeddings, or the beginning of the answer where the server takes none.
        """
        if asked.embeddings is not None or (asked.prefill and "prefill" not in self.capabilities):
            what = "the beginning of the answer" if asked.embeddings is None else "embeddings"
            raise TargetError(f"a request sets {what}, which the server of '{self.model}' does not take", fix="see 'prefill'")
        system = asked.system or self.system
        messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        for said_before, answer in asked.turns:
            messages += [{"role": "user", "content": said_before}, {"role": "assistant", "content": answer}]
        if asked.prompt or not asked.turns:
            messages.append({"role": "user", "content": asked.prompt})
        said: dict[str, Any] = {"model": self.model, "messages": messages, self.length: self.max_new_tokens}
        if self.temperature is not None:
            said["temperature"] = self.temperature
        if asked.seed is not None:
            said["seed"] = asked.seed
        if asked.prefill:
            begun = {"role": "assistant", "content": asked.prefill}
            messages.append(begun | {"prefix": True} if self.prefill == "prefix" else begun)
            said |= PREFILLS[self.prefill]
        return said | self.options

    @override
    def card(self) -> JsonObject:
        return ChatEndpointCard(
            target=self.kind,
            base_url=self.base_url,
            model=self.model,
            system=self.system,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            options=self.options,
            length=self.length,
            prefill=self.prefill,
        ).to_json()

    @classmethod
    @override
    def from_card(cls, card: JsonObject) -> ChatEndpointTarget:
        own = ChatEndpointCard.read(card)
        return cls(
            own.base_url,
            own.model,
            system=own.system,
            max_new_tokens=own.max_new_tokens,
            temperature=own.temperature,
            options=own.options,
            length=own.length,
            prefill=own.prefill,
        )


def answer_in(reply: Mapping[str, Any]) -> str:
    """The answer that a server's reply holds.

    Raises:
        TargetError: it is no text, nor parts of a text.
    """
    if error := reply.get("error"):
        said = f"[{error['said']}]"
        return Filtered(said) if error["kind"] == "filtered" else Unanswered(said)
    choice = reply["choices"][0]
    message = (choice.get("message") or {}) if isinstance(choice, Mapping) else None
    if not isinstance(message, Mapping):
        raise _no_text(choice)
    text, refused = _said_in(message.get("content"))
    refusal = message.get("refusal") or refused
    if refusal and not text:
        return Filtered(refusal)
    if choice.get("finish_reason") == "content_filter":
        # What was let through before the filter stopped it has been shown: that is for the judge.
        return CutOff(text) if text.strip() else Filtered("[held back by a content filter]")
    return CutOff(text) if choice.get("finish_reason") == "length" else text


def _said_in(content: Any) -> tuple[str, str]:
    """The text of an answer, which a server may send in parts, and what it says in parts that decline.

    Parts with a thought are left out, as a server leaves out a thought that it sends beside the content.
    """
    if content is None or isinstance(content, str):
        return content or "", ""
    if not isinstance(content, list):
        raise _no_text(content)
    said = {"text": "", "refusal": ""}
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in _THOUGHTS:
            continue
        if kind not in said or not isinstance(part.get(kind), str):
            raise _no_text(part)
        said[kind] += part[kind]
    return said["text"], said["refusal"]


def _no_text(found: Any) -> TargetError:
    return TargetError(
        f"the server answers with what is no text: {str(found)[:_SHOWN]}",
        fix="ask for text alone in 'options', or name a model that answers with text",
    )
