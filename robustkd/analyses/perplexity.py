"""Perplexity: how surprised a language model is by good answers that it was not trained on.

    perplexity = exp( - 1/T sum_t log p(y_t | request, y_<t) ),       t over the T tokens of all answers

A defense that damages the model shows here before it shows in what the model answers. Perplexities of models with different
tokenisers cannot be compared.

Source: Jelinek et al.: Perplexity: a measure of the difficulty of speech recognition tasks (1977).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.contracts import Analysis, CampaignPath, GenerativeTarget, Params, PromptBatch, Table, TargetError, ThreatModel
from robustkd.data.chats import read_chats
from robustkd.lazy import torch
from robustkd.targets.causal_lm import CausalLMTarget
from robustkd.targets.chat import Tokens
from robustkd.targets.memory import in_memory

if TYPE_CHECKING:
    from torch import Tensor

_ROWS = 16


class PerplexityParams(Params):
    chats: CampaignPath | None = Field(
        None,
        description="JSON lines of chats that nothing is trained on: prompt and response, or messages; by default the harmless "
        "requests of the data, where they come with a response",
    )
    samples: int = Field(256, ge=1, description="chats at most")


class Perplexity(Analysis[GenerativeTarget, PromptBatch]):
    """The perplexity of good answers to harmless requests, by the requests' role."""

    Params = PerplexityParams
    modalities = ("text",)
    source = "Jelinek et al. 1977"

    def files(self) -> list[Path]:
        """The file of chats that the perplexity is measured on."""
        return [self.params.chats] if self.params.chats else []

    def run(self, target: GenerativeTarget, batch: PromptBatch, threat: ThreatModel, seed: int) -> Table:
        """A row for each role, and one for all; ``metrics``: the perplexity of all. Chats beyond the context are left out.

        Raises:
            TargetError: it is no language model, or no chat is left.
            DataError: the file of chats is wrong.
        """
        if not isinstance(target, CausalLMTarget):
            raise TargetError(f"perplexity is of a language model, this is a {target.kind}", fix="leave it out of 'defenses'")
        chats = self._chats(batch)[: self.params.samples]
        laid = [(role, tokens) for role, *chat in chats if (tokens := encoded(target, *chat))]
        if not laid:
            raise TargetError(
                "perplexity: there is no chat that the model's context holds",
                fix="give 'chats', or data whose harmless requests have a column 'response'",
            )
        spent = _surprise(target, [tokens for _, tokens in laid])
        roles = list(dict.fromkeys(role for role, _ in laid))
        parts = [[found for (role, _), found in zip(laid, spent, strict=True) if role == name] for name in roles]
        every, beyond = _row(spent), len(chats) - len(laid)
        return Table(
            caption=f"perplexity of the answers in {len(laid)} chats"
            + (f"; {beyond} are longer than the context" if beyond else ""),
            rows=[*roles, "all"],
            columns=["perplexity", "tokens", "chats"],
            values=[*(_row(part) for part in parts), every],
            metrics={"perplexity": every[0]},
        )

    def _chats(self, batch: PromptBatch) -> list[tuple[str, str, str, str]]:
        """Role, request, answer and the request's own system message."""
        if self.params.chats is not None:
            return [("chat", *chat, "") for chat in read_chats(self.params.chats)]
        return harmless_chats(batch)


def harmless_chats(batch: PromptBatch) -> list[tuple[str, str, str, str]]:
    """Role, request, good answer and system message of the harmless requests that come with an answer."""
    if batch.benign is None:
        return []
    benign = batch.benign.requests
    rows = zip(benign.get("role"), benign["prompt"], benign.get("response"), benign.get("system"), strict=True)
    return [(role or "harmless", asked, answer, system) for role, asked, answer, system in rows if answer]


def encoded(target: CausalLMTarget, asked: str, answer: str, system: str) -> Tokens | None:
    """The chat as tokens; None of one that is longer than the context."""
    try:
        return target.encode(asked, completion=answer, system=system)
    except TargetError:
        return None


def _surprise(target: CausalLMTarget, laid: Sequence[Tokens]) -> list[tuple[float, int]]:
    """For each chat -log p of its answer, and the answer's tokens."""
    order = torch.tensor(sorted(range(len(laid)), key=lambda row: len(laid[row].ids)), dtype=torch.int64)  # little is padded

    def spent(rows: Tensor) -> list[tuple[float, int]]:
        batch = target.batch([laid[row] for row in rows.tolist()])
        with torch.no_grad():
            lost = -target.token_logprobs(batch).cpu().double().sum(1)
        return list(zip(lost.tolist(), batch.completion.sum(1).tolist(), strict=True))

    found = dict(zip(order.tolist(), chain.from_iterable(in_memory(spent, order, _ROWS)), strict=True))
    return [found[row] for row in range(len(laid))]


def _row(spent: Sequence[tuple[float, int]]) -> list[float]:
    lost, tokens = sum(loss for loss, _ in spent), sum(count for _, count in spent)
    return [math.exp(lost / tokens), float(tokens), float(len(spent))]
