"""A language model that is talked to: a causal one of transformers, its tokeniser and its chat template."""

from __future__ import annotations

import copy
import datetime
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Annotated

from typing_extensions import override

from robustkd.contracts import AddedLater, AttackError, Card, CutOff, GenerativeTarget, Request, TargetError, Unanswered
from robustkd.contracts.capability import ORDINARY
from robustkd.contracts.json_value import JsonObject
from robustkd.lazy import nn, torch
from robustkd.scoring.finite import require_finite
from robustkd.targets.chat import DATE, Chat, TemplateOption, TokenBatch, Tokens, TooLong
from robustkd.targets.continuation import Continuation
from robustkd.targets.frozen import without_gradients
from robustkd.targets.memory import in_memory
from robustkd.targets.prefix import PassCache, Prefix
from robustkd.targets.tokenizer_texts import special_tokens, tokenizer_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

_ROWS = 64
"""Answers that are written at once."""
_NO_LIMIT = 10**9
"""A tokeniser's length above this means that it was told none."""


class CausalLMCard(Card):
    """The card of a language model: the architecture's configuration, the tokeniser and the chat template as texts."""

    config: JsonObject
    dtype: str
    tokenizer: str
    special_tokens: dict[str, str]
    chat_template: str | None
    ends: tuple[int, ...]
    max_new_tokens: int
    system: str
    context: Annotated[int | None, AddedLater()] = None
    date: Annotated[datetime.date | None, AddedLater()] = None
    template_options: Annotated[Mapping[str, TemplateOption] | None, AddedLater()] = None


class CausalLMTarget(GenerativeTarget):
    """A causal language model behind its chat template. It answers greedily.

    Args:
        module: a causal language model of transformers.
        tokenizer: its fast tokeniser, with a chat template.
        max_new_tokens: how long an answer may be.
        system: a message from the system before the user's, "" for none.
        context: the most tokens that it takes; None: what its configuration says, or its tokeniser.
        date: see ``Chat``.
        template_options: what the chat template is told, see ``Chat``.

    Raises:
        TargetError: see ``Chat``; nothing says how long the context is, or the tokeniser has tokens that the model does not know.
    """

    kind = "causal-lm"
    capabilities = ORDINARY["text"]
    module: PreTrainedModel

    def __init__(
        self,
        module: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        *,
        max_new_tokens: int = 64,
        system: str = "",
        context: int | None = None,
        date: datetime.date = DATE,
        template_options: Mapping[str, TemplateOption] | None = None,
    ) -> None:
        self.module = module
        _require_known_tokens(tokenizer, len(self.embedding.weight))
        context = context or _context(module.config.get_text_config(), tokenizer)
        self.chat = Chat(tokenizer, context, system, date, template_options)
        self.max_new_tokens = max_new_tokens
        self._cache = PassCache(module, self.chat.context)

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokeniser, with its chat template."""
        return self.chat.tokenizer

    @property
    def system(self) -> str:
        """The system message that stands before every conversation."""
        return self.chat.system

    @property
    def device(self) -> torch.device:
        """The device that the weights are on."""
        return self.embedding.weight.device

    @property
    def embedding(self) -> nn.Embedding:
        """The table of token embeddings, (V, D)."""
        table = self.module.get_input_embeddings()
        assert isinstance(table, nn.Embedding)
        return table

    @property
    def embedding_norm(self) -> float:
        """The mean L2 norm of what ``embed`` gives of a token: the unit of a budget in embedding space."""
        return float(self._vectors().norm(dim=1).mean())

    def encode(self, prompt: str, completion: str = "", prefill: str = "", *, ends: bool = True, system: str = "") -> Tokens:
        """See ``Chat.encode``; behind another system message than the target's own where one is given."""
        return self.chat.told(system).encode(prompt, completion, prefill, ends=ends)

    def batch(self, items: Sequence[Tokens]) -> TokenBatch:
        """Side by side, padded on the right, on the target's device."""
        return self.chat.batch(items).to(self.device)

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids of any shape -> their embeddings, (.., D)."""
        embedded: Tensor = self.embedding(ids)
        return embedded

    def _vectors(self) -> Tensor:
        """(V, D) float32, every token as ``embed`` gives it: some models scale what their table holds."""
        return self.embed(torch.arange(len(self.embedding.weight), device=self.device)).detach().float()

    def __call__(self, inputs: Tensor) -> Tensor:
        """(B, T) ids -> (B, T, V) logits."""
        logits: Tensor = self.module(input_ids=inputs, use_cache=False).logits
        return logits

    def prefix(self, ids: Tensor) -> Prefix | None:
        """What the model keeps of a beginning, computed once for many continuations: (P,) ids, or several, (R, P).

        None where its passes behind a cache differ from whole ones, see ``PassCache``.
        """
        return self._cache.prefix(torch.atleast_2d(ids).to(self.device))

    @without_gradients()
    def embedding_distance(self, asked: Request) -> float:
        """See ``GenerativeTarget.embedding_distance``; embeddings beyond the prompt's own tokens are added ones, at its end."""
        assert asked.embeddings is not None
        laid = self.encode(asked.prompt)
        own = self.embed(torch.tensor(laid.ids[laid.prompt], device=self.device)).float()
        given = asked.embeddings.to(own)
        if len(given) < len(own):
            raise TargetError(
                f"{len(given)} embeddings for a prompt of {len(own)} tokens", fix="one for each token, added ones behind"
            )
        moved = (given[: len(own)] - own).norm(dim=1)
        added = torch.cdist(given[len(own) :], self._vectors()).min(1).values
        return float(torch.cat([moved, added]).max()) / self.embedding_norm

    def token_logprobs(self, batch: TokenBatch, embeddings: Tensor | None = None, prefix: Prefix | None = None) -> Tensor:
        """The log-probability of each token of the completions, given what is before it.

        Args:
            batch: B conversations.
            embeddings: (B, T, D) in place of the embedded ids.
            prefix: of the beginning that all conversations share, or of each one's own, which lies before their completions.

        Returns:
            (B, T) float32, 0 where no completion is; differentiable in ``embeddings`` and in the weights.

        Raises:
            TargetError: the conversations do not begin with ``prefix``; a log-probability is NaN.
        """
        skip = 0 if prefix is None else prefix.within(batch)
        if prefix is not None and not prefix.differentiable and embeddings is not None and embeddings.requires_grad:
            prefix, skip = None, 0
        embedded = self.embed(batch.ids[:, skip:]) if embeddings is None else embeddings[:, skip:]
        columns = batch.completion.any(0).nonzero().squeeze(1)
        # Logits where they are needed alone: over a large vocabulary they are most of the memory.
        logits = self.module(
            inputs_embeds=embedded,
            attention_mask=batch.mask.long(),
            use_cache=prefix is not None,
            logits_to_keep=columns - 1 - skip,
            **({} if prefix is None else prefix.option(len(batch))),
        ).logits.float()
        chosen = logits.log_softmax(-1).gather(2, batch.ids[:, columns, None]).squeeze(2)
        chosen = torch.where(batch.completion[:, columns], chosen, 0.0)
        # -inf is a word that the model rules out.
        require_finite(chosen.detach().clamp_min(torch.finfo(chosen.dtype).min), "the log-probabilities of the language model")
        return torch.zeros(batch.ids.shape, device=chosen.device).index_copy(1, columns, chosen)

    def completion_logits(self, batch: TokenBatch, embeddings: Tensor | None = None) -> Tensor:
        """The logits that predict each token of the completions.

        Args:
            batch: B conversations.
            embeddings: (B, T, D) in place of the embedded ids.

        Returns:
            (M, V) float32, conversation by conversation, for the M tokens of ``batch.ids[batch.completion]``; differentiable in
            ``embeddings`` and in the weights. What is no completion has no part in them.
        """
        columns = batch.completion.any(0).nonzero().squeeze(1)
        read = {"input_ids": batch.ids} if embeddings is None else {"inputs_embeds": embeddings}
        logits = self.module(**read, attention_mask=batch.mask.long(), use_cache=False, logits_to_keep=columns - 1).logits
        chosen: Tensor = logits[batch.completion[:, columns]].float()
        return chosen

    def completion_logprob(self, batch: TokenBatch, embeddings: Tensor | None = None, prefix: Prefix | None = None) -> Tensor:
        """(B,) mean log-probability of the completions' tokens."""
        return self.token_logprobs(batch, embeddings, prefix).sum(1) / batch.completion.sum(1)

    @without_gradients()
    def first_token_logprobs(self, prompt: str, system: str = "") -> Tensor:
        """(V,) float32: the log-probability of each token as the first of the answer.

        It is behind an empty thought where the template opens one, and behind a blank that the template writes as a token of its own.

        Raises:
            TooLong: the request does not fit into the context.
            TargetError: a log-probability is NaN.
        """
        ids = torch.tensor([self.chat.told(system).before_first_word(prompt)], device=self.device)
        logits = self.module(inputs_embeds=self.embed(ids), use_cache=False, logits_to_keep=1).logits[0, -1].float()
        require_finite(logits.max()[None], "the logits of the language model")
        return logits.log_softmax(-1)

    def respond(self, asked: Sequence[Request]) -> list[str]:
        """What the model answers, greedily, with its thoughts between their marks; of a prefilled answer, what it adds.

        One that is as long as it may be, and not ended, is a ``CutOff``. To a prompt that leaves no room for an answer in the context
        there is an ``Unanswered``.

        ``Request.embeddings``, (T, D) of any length, stand where the user's tokens would; the template around them stays.

        Raises:
            TargetError: the chat template does not show a prompt as it is; a logit is NaN, or all are infinite.
        """
        return self.answered(asked, self.embedded)

    def answered(self, asked: Sequence[Request], embedded: Callable[[Request], Tensor]) -> list[str]:
        """See ``respond``, of requests that are read as (T, D) vectors, which ``embedded`` gives of each."""
        answers = [""] * len(asked)
        laid: dict[int, Tensor] = {}
        for row, question in enumerate(asked):
            try:
                laid[row] = self._with_room(embedded(question), question)
            except TooLong as error:
                answers[row] = Unanswered(f"[{error.message}]")
        # By length, so that little is padded.
        order = torch.tensor(sorted(laid, key=lambda row: len(laid[row])), dtype=torch.int64)
        parts = in_memory(lambda rows: self._written([laid[row] for row in rows.tolist()]), order, _ROWS)
        for row, (ids, ended) in zip(order.tolist(), chain.from_iterable(parts), strict=True):
            text = self._told(asked[row]).written(ids, asked[row].prefill)
            answers[row] = text if ended else CutOff(text)
        return answers

    def _told(self, asked: Request) -> Chat:
        return self.chat.told(asked.system, asked.turns)

    def embedded(self, asked: Request) -> Tensor:
        """(T, D): the embedded request, as far as the answer is to be written.

        Raises:
            TooLong: it does not fit into the context.
            TargetError: the chat template does not show the prompt as it is.
        """
        chat = self._told(asked)
        if asked.turns and not asked.prompt:
            return self.embed(torch.tensor(chat.so_far(), device=self.device))
        chat.require_as_in_use(asked.prompt)
        tokens = chat.encode(asked.prompt, prefill=asked.prefill)
        text = self.embed(torch.tensor(tokens.ids, device=self.device))
        if asked.embeddings is not None:
            given = asked.embeddings.to(text)
            text = torch.cat([text[: tokens.prompt.start], given, text[tokens.prompt.stop :]])
        return text

    def _with_room(self, text: Tensor, asked: Request) -> Tensor:
        if len(text) >= self.chat.context:
            raise TooLong(
                f"the prompt leaves no room for an answer in a context of {self.chat.context} tokens: {asked.prompt[:60]!r}..",
                fix="shorten it, or take a model with a longer context",
            )
        return text

    @without_gradients()
    def _written(self, laid: Sequence[Tensor]) -> list[tuple[list[int], bool]]:
        """The ids that the model adds to each of some (T, D) embedded texts, without what ends them, and whether it ended them."""
        texts, ends = self.continuation(laid), torch.tensor(sorted(self.ends), device=self.device)
        written: list[Tensor] = []
        running = torch.ones_like(texts.room, dtype=torch.bool)
        highest: list[Tensor] = []
        while running.any():
            top, chosen = texts.logits().max(-1)
            # NaN where any logit is; a single word may be ruled out by -inf.
            highest.append(top.where(running, 0.0))
            written.append(chosen)
            running &= ~torch.isin(chosen, ends) & (texts.room > len(written))
            texts.append(chosen)
        require_finite(torch.stack(highest, 1), "the logits of the language model")
        rows = zip(torch.stack(written, 1).tolist(), texts.room.tolist(), strict=True)
        return [(ids := _until(row[:most], self.ends), len(ids) < most) for row, most in rows]

    def continuation(self, texts: Sequence[Tensor]) -> Continuation:
        """What the model says comes next behind (T, D) embedded texts, as far as an answer may go."""
        return Continuation(self.module, self._cache, self.embed, texts, self.chat.context, self.max_new_tokens)

    @functools.cached_property
    def ends(self) -> frozenset[int]:
        """The ids of the tokens that end an answer."""
        configured = self.module.generation_config.eos_token_id if self.module.generation_config else None
        several = configured if isinstance(configured, list) else [configured]
        return frozenset({self.chat.end_of_turn, self.tokenizer.eos_token_id, *several} - {None})

    @override
    def card(self) -> JsonObject:
        tokenizer, chat = self.tokenizer, self.chat
        stated = _stated_context(self.module.config.get_text_config())
        return CausalLMCard(
            target=self.kind,
            config=json.loads(json.dumps(self.module.config.to_dict())),
            dtype=str(self.embedding.weight.dtype).removeprefix("torch."),
            tokenizer=tokenizer.backend_tokenizer.to_str(),
            special_tokens=special_tokens(tokenizer),
            chat_template=tokenizer.chat_template,
            ends=tuple(sorted(self.ends)),
            max_new_tokens=self.max_new_tokens,
            system=self.system,
            context=None if stated == chat.context else chat.context,
            date=chat.date if chat.tells_the_date else None,
            template_options=chat.options or None,
        ).to_json()

    @classmethod
    @override
    def from_card(cls, card: JsonObject) -> CausalLMTarget:
        from transformers import AutoConfig, AutoModelForCausalLM

        own = CausalLMCard.read(card)
        settings = {name: value for name, value in own.config.items() if name != "model_type"}
        config = AutoConfig.for_model(str(own.config["model_type"]), **settings)
        module = AutoModelForCausalLM.from_config(config, trust_remote_code=False).to(getattr(torch, own.dtype))
        if module.generation_config is not None:
            module.generation_config.eos_token_id = list(own.ends)
        tokenizer = tokenizer_of(own.tokenizer, own.special_tokens, own.chat_template)
        return cls(
            module,
            tokenizer,
            max_new_tokens=own.max_new_tokens,
            system=own.system,
            context=own.context,
            date=own.date or DATE,
            template_options=own.template_options,
        )

    @override
    def with_weights(self, weights: Mapping[str, Tensor]) -> CausalLMTarget:
        module = copy.deepcopy(self.module)
        known = dict(module.named_parameters(remove_duplicate=False))
        for name, value in weights.items():
            if name not in known or known[name].shape != value.shape:
                shape = f"has the shape {tuple(known[name].shape)}, not {tuple(value.shape)}" if name in known else "is unknown"
                raise AttackError(f"the weight '{name}' {shape}", fix="change weights of the model itself, by their names")
            place, _, leaf = name.rpartition(".")
            # A parameter of its own: where two layers share a table, one of them may be changed alone.
            setattr(module.get_submodule(place), leaf, nn.Parameter(value.to(known[name]), requires_grad=False))
        return self.with_module(module.eval())

    def with_module(self, module: PreTrainedModel) -> CausalLMTarget:
        """Another model that is talked to in the same way."""
        chat = self.chat
        return CausalLMTarget(
            module,
            chat.tokenizer,
            max_new_tokens=self.max_new_tokens,
            system=chat.system,
            context=chat.context,
            date=chat.date,
            template_options=chat.options,
        )


def _stated_context(config: PreTrainedConfig) -> int | None:
    """The most tokens that a configuration says its model takes."""
    names = ("max_position_embeddings", "max_seq_len", "max_sequence_length", "seq_length", "n_positions")
    return next((int(length) for name in names if (length := getattr(config, name, None))), None)


def _context(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast) -> int:
    stated = _stated_context(config) or tokenizer.model_max_length
    if stated > _NO_LIMIT:
        raise TargetError(
            "neither the model's configuration nor its tokenizer says how many tokens it takes",
            fix="give 'context', the length in tokens that it was trained with",
        )
    return int(stated)


def _require_known_tokens(tokenizer: PreTrainedTokenizerFast, rows: int) -> None:
    beyond = sorted((number, token) for token, number in tokenizer.get_vocab().items() if number >= rows)
    if beyond:
        raise TargetError(
            f"the tokenizer has {len(beyond)} tokens that the model has no embedding of ({beyond[0][1]!r} is number {beyond[0][0]}, "
            f"the embedding has {rows} rows)",
            fix="give the model and the tokenizer that belong together, or resize the model's embeddings",
        )


def _until(ids: list[int], ends: frozenset[int]) -> list[int]:
    return ids[: next((place for place, token in enumerate(ids) if token in ends), len(ids))]
