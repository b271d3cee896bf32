"""A language model that reads earlier turns of a conversation as a few vectors, which a compressor makes of them.

    answer = LM( v_1 .. v_m, request ),     v = the last hidden states of the compressor at m learnt queries behind the turns

The turns themselves never reach the model. A guard in front of it still reads their text; the vectors are no text, so that behind the
compressor there is nothing to read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from typing import TYPE_CHECKING

from typing_extensions import override

from robustkd.contracts import Card, GenerativeTarget, Request, TargetError
from robustkd.contracts.json_value import JsonObject
from robustkd.contracts.prompts import Turn
from robustkd.contracts.target import of_kind
from robustkd.lazy import nn, torch
from robustkd.targets.cards import target_from_card
from robustkd.targets.causal_lm import CausalLMTarget
from robustkd.targets.chat import Chat, Tokens
from robustkd.targets.frozen import without_gradients

if TYPE_CHECKING:
    from torch import Tensor


class CompressingCard(Card):
    """The card: those of the model and of the compressor, and how many vectors there are."""

    model: JsonObject
    compressor: JsonObject
    tokens: int


class CompressingTarget(GenerativeTarget):
    """A language model whose earlier turns are compressed; without any it is the model.

    Args:
        model: what answers.
        compressor: what reads the turns, a model of the same tokens and the same width.
        queries: (m, D), what the compressor is given behind the turns; with m = 0 the turns are left out.
    """

    kind = "compressed-turns"
    capabilities = frozenset({"respond", "prefill", "conversation"})

    def __init__(self, model: CausalLMTarget, compressor: CausalLMTarget, queries: Tensor) -> None:
        self.model, self.compressor = model, compressor
        self.module = nn.ModuleDict({"model": model.module, "compressor": compressor.module})
        self.module.register_parameter("queries", nn.Parameter(queries))

    @property
    def tokens(self) -> int:
        """m, the vectors that stand for the turns."""
        return len(self._queries)

    @property
    def chat(self) -> Chat:
        """The model's template and context; the compressor reads the turns in a context of its own, which is as long."""
        return self.model.chat

    @property
    def max_new_tokens(self) -> int:
        """Of the model's answers."""
        return self.model.max_new_tokens

    @property
    def _queries(self) -> Tensor:
        return self.module.get_parameter("queries")

    def vectors(self, turns: Sequence[Sequence[int]]) -> Tensor:
        """(B, m, D) of B texts as token ids, differentiable in the compressor's weights and the queries."""
        queries, device = self._queries, self.model.device
        texts = [
            torch.cat([self.compressor.embed(torch.tensor(ids, dtype=torch.int64, device=device)), queries]) for ids in turns
        ]
        lengths = torch.tensor([len(text) for text in texts], device=device)
        mask = torch.arange(int(lengths.max()), device=device) < lengths[:, None]
        read = self.compressor.module.base_model(
            inputs_embeds=nn.utils.rnn.pad_sequence(texts, batch_first=True), attention_mask=mask.long(), use_cache=False
        ).last_hidden_state
        places = lengths[:, None] - self.tokens + torch.arange(self.tokens, device=device)
        found: Tensor = read.gather(1, places[..., None].expand(-1, -1, read.shape[-1]))
        return found

    def split(self, turns: tuple[Turn, ...], prompt: str, answer: str = "", system: str = "") -> tuple[list[int], Tokens, int]:
        """The ids of the turns alone, the conversation without them, and the place in it where they were.

        Raises:
            TooLong: with them it is longer than the context.
            TargetError: the chat template writes a request otherwise where turns are before it.
        """
        chat = self.model.chat
        whole = chat.told(system, turns).encode(prompt, answer).ids
        plain = chat.told(system).encode(prompt, answer)
        pairs = zip(reversed(whole), reversed(plain.ids), strict=False)
        behind = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        at = len(plain.ids) - behind
        if whole[:at] != plain.ids[:at]:
            raise TargetError(
                "the chat template writes a request in another way where turns are before it",
                fix="give a chat_template that writes message behind message, or leave the model's turns as they are",
            )
        return whole[at : len(whole) - behind], plain, at

    @override
    def respond(self, asked: Sequence[Request]) -> list[str]:
        """See ``CausalLMTarget.respond``."""
        return self.model.answered(asked, self._embedded)

    @without_gradients()
    def _embedded(self, asked: Request) -> Tensor:
        """(T, D): the request, with vectors in the place of its turns."""
        if not asked.turns or not asked.prompt:
            return self.model.embedded(asked)
        ids, _, at = self.split(asked.turns, asked.prompt, system=asked.system)
        text = self.model.embedded(replace(asked, turns=()))
        return torch.cat([text[:at], self.vectors([ids])[0].to(text), text[at:]]) if self.tokens else text

    @override
    def card(self) -> JsonObject:
        return CompressingCard(
            target=self.kind, model=self.model.card(), compressor=self.compressor.card(), tokens=self.tokens
        ).to_json()

    @classmethod
    @override
    def from_card(cls, card: JsonObject) -> CompressingTarget:
        own = CompressingCard.read(card)
        model, compressor = (
            of_kind(target_from_card(part), name, CausalLMTarget)
            for name, part in (("model", own.model), ("compressor", own.compressor))
        )
        return cls(model, compressor, torch.zeros(own.tokens, compressor.embedding.weight.shape[1]))
