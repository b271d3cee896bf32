"""A small language model of the campaign's own words, from scratch: Llama's architecture, one token a word."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from robustkd.contracts import Params
from robustkd.targets.causal_lm import CausalLMTarget

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_PAD, _UNKNOWN, _END = "<pad>", "<unknown>", "<end>"
_ROLES = ("<system>", "<user>", "<assistant>")
_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }} "
    "{% if message['role'] == 'assistant' %}" + _END + " {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


class SmallModelParams(Params):
    """What a small language model is like."""

    width: int = Field(128, ge=2, description="of the residual stream")
    layers: int = Field(4, ge=1, description="transformer blocks")
    heads: int = Field(4, ge=1, description="of attention")
    context: int = Field(96, ge=8, description="the most tokens of a request and its answer")
    max_new_tokens: int = Field(24, ge=1, description="the most tokens of an answer")

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> SmallModelParams:
        if self.width % (2 * self.heads):
            raise ValueError(f"a width of {self.width} cannot be shared by {self.heads} heads of an even size")
        return self


def small_model(texts: Iterable[str], params: SmallModelParams) -> CausalLMTarget:
    """A model of the words of ``texts`` with fresh weights (the caller has seeded torch)."""
    return small_network(word_tokenizer(texts), params)


def small_network(tokenizer: PreTrainedTokenizerFast, params: SmallModelParams) -> CausalLMTarget:
    """A model of a tokenizer's tokens with fresh weights (the caller has seeded torch)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=params.width,
        intermediate_size=8 * params.width // 3,
        num_hidden_layers=params.layers,
        num_attention_heads=params.heads,
        max_position_embeddings=params.context,
        tie_word_embeddings=True,
        initializer_range=params.width**-0.5,  # the usual 0.02 belongs to widths of thousands
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    return CausalLMTarget(LlamaForCausalLM(config), tokenizer, max_new_tokens=params.max_new_tokens)


def word_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """One token for each word between blanks, the commonest first; other words are unknown."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel(unk_token=_UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = [_PAD, _UNKNOWN, _END, *_ROLES]
    # Sorted by the trainer: by count, then by spelling, so that equal texts make equal ids.
    backend.train_from_iterator(texts, trainers.WordLevelTrainer(vocab_size=2**16, special_tokens=special, show_progress=False))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=_TEMPLATE,
        pad_token=_PAD,
        unk_token=_UNKNOWN,
        eos_token=_END,
        extra_special_tokens=list(_ROLES),
    )
