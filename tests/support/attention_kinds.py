"""A tiny language model of every kind of attention that transformers has, with windows that a short prompt exceeds."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from robustkd.targets import CausalLMTarget
from support.toy_language_model import toy_language_model

WINDOW = 8
_SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.5,
}
_TWO_KINDS = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
_EXPERTS = {"num_local_experts": 2, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
KINDS: dict[str, dict[str, Any]] = {
    "Llama": {},
    "GPT2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 256},
    "Bloom": {"n_head": 2, "n_layer": 2},
    "Mpt": {"d_model": 16, "n_heads": 2, "n_layers": 2, "max_seq_len": 256},
    "Mistral": {"sliding_window": WINDOW},
    "Qwen2": {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": WINDOW},
    "Gemma": {},
    "Gemma2": _TWO_KINDS,
    "Gemma3": _TWO_KINDS,
    "Cohere2": _TWO_KINDS,
    "Olmo3": _TWO_KINDS,
    "GptOss": _TWO_KINDS | _EXPERTS,
    "Llama4": {
        "attention_chunk_size": WINDOW,
        "no_rope_layers": [1, 0],
        "intermediate_size_mlp": 32,
        "for_llm_compressor": False,
    }
    | _EXPERTS,
    "Qwen3Next": {
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_value_heads": 2,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "shared_expert_intermediate_size": 16,
    }
    | _EXPERTS,
    "Lfm2": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8, "conv_L_cache": 3},
    "GraniteMoeHybrid": {
        "layer_types": ["mamba", "attention"],
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
        "shared_intermediate_size": 16,
    }
    | _EXPERTS,
    "Mamba": {"state_size": 8},
    "Mamba2": {"state_size": 8, "num_heads": 4, "head_dim": 8, "n_groups": 1},
    "RecurrentGemma": {"attention_window_size": WINDOW, "lru_width": 16, "block_types": ["recurrent", "attention"]},
}


def model_of(kind: str, words: tuple[str, ...], **options: Any) -> CausalLMTarget:
    """A causal language model of ``<kind>Config`` whose tokens are ``words``."""
    toy = toy_language_model(words)
    tokenizer, own = toy.tokenizer, KINDS[kind]
    name = kind + ("Text" if kind in ("Gemma3", "Llama4") else "")
    torch.manual_seed(0)
    ends = {
        "bos_token_id": None,
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = getattr(transformers, f"{name}Config")(**(_SIZES | ends | own))
    module = transformers.AutoModelForCausalLM.from_config(config)
    return CausalLMTarget(module.eval(), tokenizer, max_new_tokens=6, **options)
