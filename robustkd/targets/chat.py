"""From what is said to tokens: one path for clean, adversarial and preference texts, through the model's chat template.

A template is a frame around the user's text: ``<user> `` before it, `` <assistant> `` behind it, an end of turn behind the
answer. Everything up to where the answer begins is tokenised as one text, as it would be in use; what is put behind it never
changes a token before it. So ``encode(p, a).ids`` begins with ``encode(p).ids`` for every answer ``a``, whatever the tokeniser.

Some templates write a blank between the two: Llama 2's, Mistral's and Vicuna's a space, Zephyr's a new line. It belongs to the answer.
A model that was trained so says it by itself, most often as a part of its first word: ``▁Yes``, not ``Ye`` and ``s``.
"""

from __future__ import annotations

import copy
import datetime
import functools
import inspect
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from robustkd.contracts import TargetError
from robustkd.contracts.prompts import Turn
from robustkd.lazy import torch
from robustkd.targets.thoughts import CHANNEL_TOKENS, MARKS, closing, opened_by

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

_LOG = logging.getLogger(__name__)
_MARK = "\ue000"
"""Stands for a text while a template is taken apart: of the private use area, so no template writes it."""
_AWKWARD = f"""{_MARK}Aa "'<&>\\\u00e9\n\n.{_MARK}"""
"""A text that a template must show as it is: capitals, quotes, what HTML and JSON escape, an empty line."""
_BLANK = " \n"
_TODAY = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
DATE = datetime.date(2024, 7, 26)
"""What templates are told is today, unless another day is asked for: the one that Llama 3's takes where it is told none."""

_FIRST_WORDS = ("-", "I", "The", "Yes")
"""Beginnings of answers. A blank that is a token of its own before all of them is one before any other."""

_FRAMES = 256
"""Conversations whose frames are kept."""

TemplateOption = bool | int | float | str
"""What an option of a template may be."""


class TooLong(TargetError):
    """A request does not fit into the model's context. It is the request's alone: others can be asked."""


@dataclass(frozen=True)
class Tokens:
    """One conversation: a request and, it may be, an answer.

    Attributes:
        ids: all of it, the template included.
        prompt: the user's own text; where a tokeniser merges its edge with the template, that token too.
        completion: the answer, with the end of turn.
    """

    ids: list[int]
    prompt: slice
    completion: slice

    def reading(self) -> Tokens:
        """The conversation with the user's text as what is predicted; nothing predicts the very first token."""
        return Tokens(self.ids[: self.prompt.stop], slice(0, 0), slice(max(1, self.prompt.start), self.prompt.stop))


@dataclass(frozen=True)
class TokenBatch:
    """Conversations side by side, padded on the right.

    Attributes:
        ids: (B, T) int64.
        mask: (B, T) bool, what is no padding.
        prompt, completion: (B, T) bool, see ``Tokens``.
    """

    ids: Tensor
    mask: Tensor
    prompt: Tensor
    completion: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> TokenBatch:
        """A copy of the batch whose tensors are on ``device``."""
        return TokenBatch(*(tensor.to(device) for tensor in self._tensors()))

    def select(self, rows: Tensor) -> TokenBatch:
        """Some of the rows (indices, a mask or a slice), as wide as before."""
        return TokenBatch(*(tensor[rows] for tensor in self._tensors()))

    def _tensors(self) -> Iterator[Tensor]:
        return (getattr(self, part.name) for part in fields(self))


class Chat:
    """A tokeniser with its chat template.

    Args:
        tokenizer: a fast one of transformers (it knows where in the text a token comes from).
        context: the most tokens that the model takes.
        system: a message from the system before the user's, "" for none.
        date: what a template that asks for today's date is told, so that a request is the same text on every day.
        options: what else the template is told, such as ``enable_thinking``.

    Attributes:
        end_of_turn: the token that ends an answer.
        pad: the token that fills a batch; it is masked, so its choice changes nothing.
        blank: what the template writes before an answer and leaves to the model to say; empty for most.

    Raises:
        TargetError: there is no chat template, it does not show what the user says as it is (blanks around it may be left out),
            it has no such option, or nothing ends an answer.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        context: int,
        system: str = "",
        date: datetime.date = DATE,
        options: Mapping[str, TemplateOption] | None = None,
    ) -> None:
        if not tokenizer.chat_template:
            raise TargetError(
                "the tokenizer has no chat template",
                fix="give one as chat_template (Jinja), or take the model's instruction-tuned form",
            )
        if not tokenizer.is_fast:
            raise TargetError("the tokenizer is a slow one", fix="give its folder a tokenizer.json")
        self.tokenizer, self.context, self.system, self.date = tokenizer, context, system, date
        # Transformers hands templates a function of its own, which nothing that it is given replaces.
        self._template = _TODAY.sub(lambda found: repr(date.strftime(found[2])), tokenizer.get_chat_template())
        self.options: dict[str, Any] = dict(options or {})
        taken = {"messages", *inspect.signature(tokenizer.apply_chat_template).parameters}
        for name in self.options:
            if name in taken or not re.search(rf"\b{re.escape(name)}\b", self._template):
                raise TargetError(
                    f"the chat template has no option '{name}'",
                    fix="see the template's text for the names that it asks for, such as enable_thinking",
                )
        self._turns: tuple[Turn, ...] = ()
        self._told: dict[tuple[str, tuple[Turn, ...]], Chat] = {}
        self._missed = self._added_start()
        self._frame()
        _, end = self._parts(_MARK, [_user("-"), _assistant(_MARK)])
        self.end_of_turn = self._first_special(end)
        self.pad = self._pad()

    def _frame(self) -> None:
        """Find what the template writes around the user's text, and before an answer."""
        self._before, self._behind = self._parts(_AWKWARD, [_user(_AWKWARD)], add_generation_prompt=True)
        before, behind = self._parts(_MARK, [_user(f"{_BLANK}{_MARK}{_BLANK}")], add_generation_prompt=True)
        self._trims = before == self._before, behind == self._behind
        self.blank = self._blank_of_answers()

    def _blank_of_answers(self) -> str:
        asked = self._rendered([_user("-")], add_generation_prompt=True)
        answered, _ = self._parts(_MARK, [_user("-"), _assistant(_MARK)])
        between = answered.removeprefix(asked)
        # Anything but blanks is no part of an answer, such as the empty thought that Qwen 3's writes before it.
        return between if answered.startswith(asked) and between.isspace() and not opened_by(asked) else ""

    def told(self, system: str = "", turns: tuple[Turn, ...] = ()) -> Chat:
        """The same, where the request comes behind another message of the system ("" for this one's) and behind earlier turns.

        Raises:
            TargetError: the template takes no system message, or no earlier turns.
        """
        key = system or self.system, turns
        if key == (self.system, self._turns):
            return self
        if key not in self._told:
            if len(self._told) >= _FRAMES:
                self._told.clear()
            other = copy.copy(self)
            other._told = {}
            other.system, other._turns = key
            other._frame()
            self._told[key] = other
        return self._told[key]

    @functools.cached_property
    def special(self) -> frozenset[int]:
        """Ids that stand for no text."""
        added = {number for number, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        return frozenset(added | set(self.tokenizer.all_special_ids))

    @property
    def tells_the_date(self) -> bool:
        """Whether the template asks for today's date."""
        return self._template != self.tokenizer.get_chat_template()

    def shown(self, prompt: str) -> str:
        """What the template shows of a request: some leave out the blanks before and behind it."""
        prompt = prompt.lstrip() if self._trims[0] else prompt
        return prompt.rstrip() if self._trims[1] else prompt

    def require_as_in_use(self, prompt: str) -> None:
        """``encode`` lays the request out as the template does.

        Raises:
            TargetError: it does not: the template treats requests like this one in its own way.
        """
        if self._rendered([_user(prompt)], add_generation_prompt=True) != self._text(prompt):
            raise TargetError(
                f"the chat template shows this request in a way of its own: {prompt[:60]!r}..",
                fix="leave the request out, or give another chat_template",
            )

    def encode(self, prompt: str, completion: str = "", prefill: str = "", *, ends: bool = True) -> Tokens:
        """A request and an answer to it. Where the template opens a thought, an empty one, so that what follows is the answer.

        The blank that the template writes before an answer is put before it, unless the answer brings it.

        Args:
            prompt: what the user says.
            completion: the answer, or its rest behind ``prefill``.
            prefill: the beginning of an answer that is given, not predicted.
            ends: whether the completion is the whole answer, so that the end of turn belongs to it.

        Raises:
            TooLong: it is longer than the context.
        """
        prompt, text = self.shown(prompt), self._text(prompt)
        ids, offsets = self._tokenised(text)
        self._warn_of_start(ids)
        first, last = len(self._before), len(self._before) + len(prompt)
        inside = [place for place, (start, stop) in enumerate(offsets) if start < last and stop > first and start < stop]
        span = slice(inside[0], inside[-1] + 1) if inside else slice(*(2 * [_behind(offsets, first)]))
        given = prefill + completion
        if given and not given.startswith(self.blank):
            prefill, completion = (self.blank + prefill, completion) if prefill else ("", self.blank + completion)
        for added in (closing(text, given) if given else "", prefill):
            if added:
                ids, text = ids + self._continuation(text, ids, added), text + added
        begin = len(ids)
        if completion:
            ids = ids + self._continuation(text, ids, completion) + ([self.end_of_turn] if ends else [])
        if len(ids) > self.context:
            raise TooLong(
                f"a prompt of {begin} tokens and {len(ids) - begin} of its answer are more than the model's context of "
                f"{self.context}: {prompt[:60]!r}..",
                fix="shorten it, or take a model with a longer context",
            )
        return Tokens(ids, span, slice(begin, len(ids)))

    def before_first_word(self, prompt: str) -> list[int]:
        """The ids up to the first word of an answer: with the blank before it, where that is a token of its own.

        Raises:
            TooLong: with a word behind it, it is longer than the context.
        """
        begun = [self.encode(prompt, word, ends=False) for word in (_FIRST_WORDS if self.blank else _FIRST_WORDS[:1])]
        blanks = min(map(self._blanks, begun)) if self.blank else 0
        return begun[0].ids[: begun[0].completion.start + blanks]

    def _blanks(self, tokens: Tokens) -> int:
        """How many tokens of blanks alone an answer begins with."""
        said = tokens.ids[tokens.completion]
        return sum(1 for _ in takewhile(lambda number: not str(self.tokenizer.decode([number])).strip(), said))

    def so_far(self) -> list[int]:
        """The ids of the earlier turns alone, up to where the model speaks: what it says of them."""
        return self._tokenised(self._rendered([], add_generation_prompt=True))[0]

    def laid_out(self, prompts: Sequence[str], chats: Sequence[Chat] | None = None) -> list[list[int]]:
        """``encode(prompt).ids`` of many prompts at once, however long; of each one's own of ``chats``, which share a tokeniser."""
        if not prompts:
            return []
        texts = [chat._text(prompt) for prompt, chat in zip(prompts, chats or [self] * len(prompts), strict=True)]
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def batch(self, items: Sequence[Tokens]) -> TokenBatch:
        """Side by side, padded on the right, on the CPU."""
        shape = len(items), max(len(item.ids) for item in items)
        ids = torch.full(shape, self.pad, dtype=torch.int64)
        mask, prompt, completion = (torch.zeros(shape, dtype=torch.bool) for _ in range(3))
        for row, item in enumerate(items):
            ids[row, : len(item.ids)] = torch.tensor(item.ids)
            mask[row, : len(item.ids)] = True
            prompt[row, item.prompt] = True
            completion[row, item.completion] = True
        return TokenBatch(ids, mask, prompt, completion)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, special ones left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def written(self, ids: Sequence[int], prefill: str = "") -> str:
        """What a model wrote behind a request, with the marks of its thoughts: also those that are special tokens, and the one that the
        template wrote for it.
        """
        kept = [number for number in ids if number not in self.special or number in self._thought_marks]
        text = str(self.tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)).strip()
        opening = "" if prefill else opened_by(self._behind)
        return f"{opening}\n{text}" if opening else text

    @functools.cached_property
    def _thought_marks(self) -> frozenset[int]:
        marks = {mark for pair in MARKS for mark in pair} | set(CHANNEL_TOKENS)
        return frozenset(number for number, token in self.tokenizer.added_tokens_decoder.items() if token.content in marks)

    def _text(self, prompt: str) -> str:
        return self._before + self.shown(prompt) + self._behind

    def _continuation(self, before: str, ids: list[int], added: str) -> list[int]:
        """The tokens of ``added`` behind ``before``; alone, where its first one would swallow what is before it."""
        together, _ = self._tokenised(before + added)
        return together[len(ids) :] if together[: len(ids)] == ids else self._tokenised(added)[0]

    def _tokenised(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return found["input_ids"], found["offset_mapping"]

    def _parts(self, mark: str, messages: list[dict[str, str]], **options: Any) -> tuple[str, str]:
        """What the template writes before and behind the mark."""
        before, found, behind = self._rendered(messages, **options).partition(mark)
        if not found or mark in behind:
            raise TargetError(
                "the chat template does not show a message once, as it is",
                fix="give another chat_template, which writes a message's content once and changes nothing in it",
            )
        return before, behind

    def _rendered(self, messages: list[dict[str, str]], **options: Any) -> str:
        system = [{"role": "system", "content": self.system}] if self.system else []
        turns = [message for asked, answer in self._turns for message in (_user(asked), _assistant(answer))]
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [*system, *turns, *messages], chat_template=self._template, tokenize=False, **self.options, **options
                )
            )
        except Exception as error:  # Jinja's errors, and those that templates raise themselves
            raise TargetError(
                f"the chat template fails: {type(error).__name__}: {error}",
                fix="it may take no earlier turns: write them into the request's text"
                if turns
                else "leave out 'system': this template may know no such message; or write its text before each request"
                if system
                else "it is given a message of a user, and one of an assistant; give a chat_template that takes these",
            ) from error

    def _first_special(self, end: str) -> int:
        special = [token for token in self._tokenised(end)[0] if token in self.special]
        found = special[0] if special else self.tokenizer.eos_token_id
        if found is None:
            raise TargetError(
                "nothing ends an answer: no end of turn in the chat template", fix="give the tokenizer an eos_token"
            )
        return int(found)

    def _added_start(self) -> set[int]:
        """The token that the tokeniser itself puts before a text, if it does. What a template renders gets it from the template alone."""
        start = self.tokenizer.bos_token_id
        return {start} if start is not None and self.tokenizer("-")["input_ids"][:1] == [start] else set()

    def _warn_of_start(self, ids: Sequence[int]) -> None:
        """Once, for this chat and all that it was told: a request may bring the token, so it is seen where one is laid out."""
        if self._missed and ids and ids[0] not in self._missed:
            self._missed.clear()
            _LOG.warning(
                "the tokenizer begins a text with %s, and the chat template does not: if the model was trained with it, "
                "write {{ bos_token }} at the beginning of chat_template",
                self.tokenizer.bos_token,
            )

    def _pad(self) -> int:
        if self.tokenizer.pad_token_id is not None:
            return int(self.tokenizer.pad_token_id)
        _LOG.warning("the tokenizer has no pad token: batches are filled with its end of turn, which is masked")
        return self.end_of_turn


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def _assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def _behind(offsets: Sequence[tuple[int, int]], place: int) -> int:
    """The first token that begins at ``place`` or later."""
    return next((token for token, (start, _) in enumerate(offsets) if start >= place), len(offsets))
