"""A language model of two stacks that is talked to: an encoder reads the request, a decoder writes the answer.

A begun answer is put into the decoder, so what was asked and what is being said are never one text to it. It shares tokeniser and template
with the decoder-only models, and can be asked less: it answers, also behind a begun answer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

from typing_extensions import override

from robustkd.contracts import Card, CutOff, GenerativeTarget, Request, Unanswered
from robustkd.contracts.json_value import JsonObject
from robustkd.lazy import torch
from robustkd.scoring.finite import require_finite
from robustkd.targets.chat import Chat, TokenBatch, Tokens, TooLong
from robustkd.targets.frozen import without_gradients
from robustkd.targets.memory import in_memory
from robustkd.targets.tokenizer_texts import special_tokens, tokenizer_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

_ROWS = 64


class EncoderDecoderCard(Card):
    """The card: the architecture's configuration, the tokeniser and the chat template as texts."""

    config: JsonObject
    tokenizer: str
    special_tokens: dict[str, str]
    chat_template: str | None
    max_new_tokens: int
    context: int


class EncoderDecoderTarget(GenerativeTarget):
    """A T5 behind a chat template. It answers greedily.

    Args:
        module: T5ForConditionalGeneration, whose decoder starts with the padding.
        tokenizer: a fast one, with a chat template.
        max_new_tokens: how long an answer may be.
        context: the most tokens of a request and its answer.
    """

    kind = "encoder-decoder"
    capabilities = frozenset({"respond", "prefill", "conversation"})

    def __init__(self, module: Any, tokenizer: PreTrainedTokenizerFast, *, max_new_tokens: int, context: int) -> None:
        self.module, self.max_new_tokens = module, max_new_tokens
        self.chat = Chat(tokenizer, context)

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokeniser, with its chat template."""
        return self.chat.tokenizer

    def encode(self, prompt: str, completion: str = "", prefill: str = "") -> Tokens:
        """See ``Chat.encode``."""
        return self.chat.encode(prompt, completion, prefill)

    def batch(self, items: Sequence[Tokens]) -> TokenBatch:
        """Side by side, padded on the right, on the target's device."""
        return self.chat.batch(items).to(self.device)

    def completion_logits(self, batch: TokenBatch) -> Tensor:
        """(M, V) float32 of what predicts each token of the completions, as ``CausalLMTarget.completion_logits`` gives them.

        What is before a completion goes to the encoder, and the completion, shifted by one, to the decoder.
        """
        begin, count = batch.completion.int().argmax(1), batch.completion.sum(1)
        columns = torch.arange(batch.ids.shape[1], device=batch.ids.device)
        asked = batch.mask & (columns < begin[:, None])
        places = torch.arange(int(count.max()), device=batch.ids.device)
        said = batch.ids.gather(1, (begin[:, None] + places).clamp_max(batch.ids.shape[1] - 1))
        logits = self._logits(batch.ids[:, : int(begin.max())], asked[:, : int(begin.max())], said[:, :-1])
        chosen: Tensor = logits[places < count[:, None]]
        return chosen

    def token_logprobs(self, batch: TokenBatch) -> Tensor:
        """(M,) float32, the log-probabilities of the completions' tokens."""
        told = batch.ids[batch.completion][:, None]
        return self.completion_logits(batch).log_softmax(1).gather(1, told).squeeze(1)

    def _logits(self, asked: Tensor, mask: Tensor, said: Tensor) -> Tensor:
        """(B, L + 1, V) of the next token behind nothing and behind each of the (B, L) that were said."""
        start = torch.full_like(said[:, :1] if said.shape[1] else asked[:, :1], self.chat.pad)
        decoded = torch.cat([start, said], 1)
        logits: Tensor = self.module(
            input_ids=asked, attention_mask=mask.long(), decoder_input_ids=decoded, use_cache=False
        ).logits.float()
        return logits

    @override
    def respond(self, asked: Sequence[Request]) -> list[str]:
        """What the decoder says behind a begun answer, or from the start; see ``CausalLMTarget.respond``.

        Raises:
            TargetError: the chat template does not show a prompt as it is; a logit is not finite.
        """
        answers = [""] * len(asked)
        laid: dict[int, tuple[list[int], list[int]]] = {}
        for row, question in enumerate(asked):
            chat = self.chat.told(question.system, question.turns)
            try:
                chat.require_as_in_use(question.prompt)
                read = chat.encode(question.prompt).ids
                begun = chat.encode(question.prompt, prefill=question.prefill).ids[len(read) :]
                laid[row] = read, begun
            except TooLong as error:
                answers[row] = Unanswered(f"[{error.message}]")
        # Those whose begun answers are as long together: the decoder's positions are the same then.
        order = sorted(laid, key=lambda row: (len(laid[row][1]), len(laid[row][0])))
        groups = [
            [row for row in order if len(laid[row][1]) == length] for length in sorted({len(b) for _, b in laid.values()})
        ]
        for rows in groups:
            parts = in_memory(lambda some: self._written([laid[row] for row in some.tolist()]), torch.tensor(rows), _ROWS)
            for row, (ids, ended) in zip(rows, chain.from_iterable(parts), strict=True):
                text = self.chat.told(asked[row].system, asked[row].turns).written(ids, asked[row].prefill)
                answers[row] = text if ended else CutOff(text)
        return answers

    @without_gradients()
    def _written(self, laid: Sequence[tuple[list[int], list[int]]]) -> list[tuple[list[int], bool]]:
        """What is added to each of some (read, begun) ids, without what ends it, and whether it was ended."""
        width = max(len(read) for read, _ in laid)
        ids = torch.tensor([read + [self.chat.pad] * (width - len(read)) for read, _ in laid], device=self.device)
        mask = torch.arange(width, device=self.device) < torch.tensor([[len(read)] for read, _ in laid], device=self.device)
        said = torch.tensor([begun for _, begun in laid], dtype=torch.int64, device=self.device).reshape(len(laid), -1)
        first, ended = said.shape[1], torch.zeros(len(laid), dtype=torch.bool, device=self.device)
        while said.shape[1] - first < self.max_new_tokens and not ended.all():
            logits = self._logits(ids, mask, said)[:, -1]
            require_finite(logits, "the logits of the language model")
            following = logits.argmax(1)
            said = torch.cat([said, following[:, None]], 1)
            ended |= following == self.chat.end_of_turn
        found = []
        for row in said[:, first:].tolist():
            stop = row.index(self.chat.end_of_turn) if self.chat.end_of_turn in row else len(row)
            found.append((row[:stop], stop < len(row)))
        return found

    @override
    def card(self) -> JsonObject:
        tokenizer, config = self.tokenizer, cast("Any", self.module).config
        return EncoderDecoderCard(
            target=self.kind,
            config=json.loads(json.dumps(config.to_dict())),
            tokenizer=tokenizer.backend_tokenizer.to_str(),
            special_tokens=special_tokens(tokenizer),
            chat_template=tokenizer.chat_template,
            max_new_tokens=self.max_new_tokens,
            context=self.chat.context,
        ).to_json()

    @classmethod
    @override
    def from_card(cls, card: JsonObject) -> EncoderDecoderTarget:
        from transformers import AutoConfig, T5ForConditionalGeneration

        own = EncoderDecoderCard.read(card)
        settings = {name: value for name, value in own.config.items() if name != "model_type"}
        config: Any = AutoConfig.for_model("t5", **settings)
        tokenizer = tokenizer_of(own.tokenizer, own.special_tokens, own.chat_template)
        return cls(T5ForConditionalGeneration(config), tokenizer, max_new_tokens=own.max_new_tokens, context=own.context)
