"""Texts that a language model goes on with, side by side, a token at a time: greedily, or as somebody else chooses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from robustkd.lazy import nn, torch
from robustkd.targets.prefix import PassCache

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Continuation:
    """What a model says comes next behind some texts, which grow by the tokens that are chosen.

    Args:
        module: the model.
        cache: of its passes; it writes from there where that gives what whole passes give.
        embed: token ids -> embeddings.
        texts: (T, D) embedded, each of its own length.
        context: the most tokens that the model takes.
        most: tokens behind each text.

    Attributes:
        room: (B,) int64, how many tokens there may be behind each text: a matter of its own length, not of the batch.
    """

    def __init__(
        self,
        module: PreTrainedModel,
        cache: PassCache,
        embed: Callable[[Tensor], Tensor],
        texts: Sequence[Tensor],
        context: int,
        most: int,
    ) -> None:
        self._module, self._cache, self._embed, self._context = module, cache, embed, context
        width, device = max(len(text) for text in texts), texts[0].device
        self._embedded = torch.stack([nn.functional.pad(text, (0, 0, width - len(text), 0)) for text in texts])
        lengths = torch.tensor([len(text) for text in texts], device=device)
        self._mask = torch.arange(width, device=device) >= width - lengths[:, None]
        self._positions = (self._mask.cumsum(1) - 1).clamp_min(0)
        self.room = (context - lengths).clamp_max(most)
        self._cached = cache.steps(texts[0])
        self._step: dict[str, Any] = {"inputs_embeds": self._embedded}
        self._output: Any = None

    def logits(self) -> Tensor:
        """(B, V) of the next token of each."""
        self._output = self._module(
            **self._step,
            attention_mask=self._mask.long(),
            position_ids=self._positions,
            use_cache=self._cached,
            logits_to_keep=1,
        )
        logits: Tensor = self._output.logits[:, -1]
        return logits

    def append(self, chosen: Tensor) -> None:
        """Go on behind (B,) tokens, after ``logits``."""
        last = (self._positions[:, -1:] + 1).clamp_max(self._context - 1)
        if self._cached:
            name = self._cache.name
            self._step, self._positions = {"input_ids": chosen[:, None], name: getattr(self._output, name)}, last
        else:
            self._embedded = torch.cat([self._embedded, self._embed(chosen[:, None])], 1)
            self._positions = torch.cat([self._positions, last], 1)
            self._step = {"inputs_embeds": self._embedded}
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], 1)
