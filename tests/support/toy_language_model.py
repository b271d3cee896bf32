"""A language model of a few thousand parameters, random but sure of what it says, for attacks and defenses of text."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from robustkd.targets import CausalLMTarget

SPECIAL = ("<pad>", "<unk>", "<user>", "<assistant>", "<end>")
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} {% if m['role'] == 'assistant' %}<end>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def toy_language_model(words: tuple[str, ...], seed: int = 0, **config: Any) -> CausalLMTarget:
    """A Llama of random weights whose tokens are ``words``."""
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate((*SPECIAL, *words))}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=TEMPLATE,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        extra_special_tokens=["<user>", "<assistant>"],
    )
    return CausalLMTarget(random_llama(tokenizer, seed, **config), tokenizer, max_new_tokens=6)


def random_llama(tokenizer: Any, seed: int = 0, **config: Any) -> LlamaForCausalLM:
    """Llama of two layers and random weights for these tokens; ``config`` are its parameters that differ."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "eos_token_id": tokenizer.eos_token_id,
        "tie_word_embeddings": True,
        "initializer_range": 0.5,
    }
    return LlamaForCausalLM(LlamaConfig(**(settings | config))).eval()
