"""The tokens that a suffix may be made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from robustkd.attacks.text.engine.slots import Slots
from robustkd.contracts import AttackError, Attempts
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch
from robustkd.targets.causal_lm import CausalLMTarget

if TYPE_CHECKING:
    from torch import Tensor

_TRIES = 16


class NoSuffix(AttackError):
    """Behind some requests no random words are the tokens that they were made of.

    Attributes:
        places: which, among those that were asked about.
    """

    def __init__(self, places: Sequence[int]) -> None:
        super().__init__(
            "no random words behind a request are the tokens that they were made of",
            fix="this tokenizer's texts do not give its own ids back; use an attack that needs no tokens",
        )
        self.places = tuple(places)


def apart(rows: Tensor, attempts: Attempts, work: Callable[[Tensor], None]) -> None:
    """Do ``work`` on ``rows`` of a batch; those behind which it finds no suffix the attack leaves, and it is done on the others."""
    while len(rows):
        try:
            return work(rows)
        except NoSuffix as error:
            without = torch.zeros(len(rows), dtype=torch.bool)
            without[list(error.places)] = True
            attempts.leave(rows[without], error.message)
            rows = rows[~without]


@dataclass(frozen=True)
class Vocabulary:
    """Tokens that stand for text.

    Attributes:
        allowed: (V,) bool, no special ones, none that are blank, and only printable ASCII unless any text is meant.
        words: (W,) int64, those of the allowed ones that begin a word, so that they stay themselves behind other tokens.
    """

    allowed: Tensor
    words: Tensor

    @classmethod
    def of(cls, target: CausalLMTarget, ascii_only: bool = True) -> Vocabulary:
        """The target's.

        Raises:
            AttackError: it has none of the kind.
        """
        size, special = len(target.tokenizer), target.chat.special
        texts = target.tokenizer.batch_decode([[token] for token in range(size)], clean_up_tokenization_spaces=False)
        ids = [token for token, text in enumerate(texts) if token not in special and _is_text(text, ascii_only)]
        if not ids:
            raise AttackError("the tokenizer has no tokens of printable ASCII characters", fix="set ascii: false")
        # Whether a token begins a word shows behind another one.
        first = texts[ids[0]]
        behind = target.tokenizer.batch_decode([[ids[0], token] for token in ids], clean_up_tokenization_spaces=False)
        words = [token for token, text in zip(ids, behind, strict=True) if text[len(first) :].startswith(" ")]
        allowed = torch.zeros(len(target.embedding.weight), dtype=torch.bool)
        allowed[ids] = True
        return cls(allowed.to(target.device), torch.tensor(words or ids, device=target.device))

    def random_suffixes(self, slots: Slots, length: int, rng: SampleRng) -> tuple[Tensor, list[str]]:
        """Draw (A, length) random words behind each request that are a text there, and give the prompts with them.

        Raises:
            NoSuffix: none of several draws is.
        """
        drawn = self.words[rng.integers((_TRIES, length), len(self.words))]
        places = torch.arange(len(slots.prompts))
        texts = slots.texts(places, drawn)
        first = [next((column for column, text in enumerate(row) if text is not None), None) for row in texts]
        if None in first:
            raise NoSuffix([place for place, column in enumerate(first) if column is None])
        columns = [column for column in first if column is not None]
        prompts = [text for row, column in zip(texts, columns, strict=True) if (text := row[column]) is not None]
        return drawn[places, columns], prompts


def _is_text(text: str, ascii_only: bool) -> bool:
    return bool(text.strip()) and text.isprintable() and "\ufffd" not in text and (text.isascii() or not ascii_only)
