"""The tokeniser of a language model as the texts that a card holds, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def special_tokens(tokenizer: PreTrainedTokenizerFast) -> dict[str, str]:
    """The tokens that have a role, by what transformers calls it, such as ``eos_token``."""
    return {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}


def tokenizer_of(text: str, special: Mapping[str, str], chat_template: str | None) -> PreTrainedTokenizerFast:
    """The tokeniser from its own text, its special tokens and its template."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(text), chat_template=chat_template, **special)
