"""A language model behind a server with OpenAI's protocol: OpenAI's own, vLLM, llama.cpp, Ollama, LiteLLM and others.

Only its answers are seen. It can be the target, the attacker model of `pair` and the model of `llm-judge`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, field_validator
from typing_extensions import override

from robustkd.contracts import BaseTarget, Capabilities, FitContext, Params, Prompts
from robustkd.defenses.text.text_defense import TextDefense
from robustkd.targets.chat_endpoint import ChatEndpointTarget, Length, Prefill, capabilities
from robustkd.targets.chat_server import Connection


class ChatEndpointParams(Params):
    """Parameters of ``chat-endpoint``. How it is asked (key, concurrency, timeout, retries) is no part of a result's identity."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"base_url": "http://localhost:8000/v1", "model": "my-model"}]})

    base_url: str = Field(description="of the server, up to and with /v1", examples=["http://localhost:8000/v1"])
    model: str = Field(min_length=1, description="what the server calls the model", examples=["my-model"])
    system: str = Field("", description="the system's message")
    max_new_tokens: int = Field(128, ge=1, description="the most tokens of an answer")
    temperature: float | None = Field(0.0, ge=0, description="of the sampling; null: not sent, for models that allow no choice")
    options: dict[str, Any] = Field({}, description="what a request says beside this, such as {seed: 0, top_p: 1}")
    length: Length = Field("max_tokens", description="what the server calls max_new_tokens")
    prefill: Prefill = Field(
        "none",
        description="how it is told the beginning of an answer: not at all; as a last-message of the assistant; continue: with vLLM's "
        "and SGLang's continue_final_message; prefix: with the prefix of Mistral and DeepSeek",
    )
    key: str | None = Field(
        None,
        exclude=True,
        pattern=r"^\w*(API_KEY|TOKEN)$",
        description="the environment variable that holds the key, such as OPENAI_API_KEY; null where none is asked for",
    )
    concurrency: int = Field(8, ge=1, exclude=True, description="requests under way at once")
    timeout: float = Field(120.0, gt=0, exclude=True, description="seconds that an answer may take")
    retries: int = Field(
        6, ge=0, exclude=True, description="repetitions of a request where the server is full, fails or is silent"
    )

    @field_validator("base_url")
    @classmethod
    def _is_an_address(cls, base_url: str) -> str:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("give the address of a server, such as http://localhost:8000/v1")
        if parts.username or parts.password:
            raise ValueError("leave the password out; give it by the environment, and the variable's name as 'key'")
        return base_url.rstrip("/")


class ChatEndpoint(TextDefense):
    """A language model that is asked by OpenAI's protocol of chat completions."""

    Params = ChatEndpointParams
    uses_data = False
    source = "the user's own server"

    @property
    @override
    def served_tokens(self) -> int:
        return int(self.params.max_new_tokens)

    def target_capabilities(self, others: Mapping[str, Capabilities]) -> Capabilities:
        """It answers; it goes on with a beginning where ``prefill`` says how, and draws at any temperature but 0."""
        return capabilities(self.params.prefill, self.params.temperature)

    @override
    def fit(self, context: FitContext[Prompts]) -> ChatEndpointTarget:
        p = self.params
        return ChatEndpointTarget(
            p.base_url,
            p.model,
            system=p.system,
            max_new_tokens=p.max_new_tokens,
            temperature=p.temperature,
            options=p.options,
            length=p.length,
            prefill=p.prefill,
        )

    @override
    def connect(self, target: BaseTarget, folder: Path) -> None:
        assert isinstance(target, ChatEndpointTarget)
        p = self.params
        target.connect(Connection(p.key, p.concurrency, p.timeout, p.retries), folder)
