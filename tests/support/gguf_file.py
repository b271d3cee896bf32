"""A language model of a few thousand random weights in a GGUF file, as llama.cpp's tools write it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
_WIDTH, _INNER, _LAYERS = 32, 64, 1


def write_gguf(file: Path, words: tuple[str, ...] = ("say", "it", "hello")) -> None:
    """One layer of a Llama, its matrices in blocks of eight bits."""
    from gguf import GGMLQuantizationType, GGUFWriter, quants

    tokens = [
        "<unk>",
        "<s>",
        "<|endoftext|>",
        *(chr(place) for place in range(97, 123)),
        *(f"Ġ{word}" for word in words),
        "Ġ",
        "he",
    ]
    writer, draw = GGUFWriter(file, "llama"), np.random.default_rng(0)
    writer.add_context_length(64)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(_INNER)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(_WIDTH // 2)
    writer.add_vocab_size(len(tokens))
    writer.add_file_type(7)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3, *[1] * (len(tokens) - 3)])
    writer.add_token_merges(["h e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)
    square, wide = (_WIDTH, _WIDTH), (_INNER, _WIDTH)
    layer = {"attn_q": square, "attn_k": square, "attn_v": square, "attn_output": square}
    layer |= {"ffn_gate": wide, "ffn_up": wide, "ffn_down": wide[::-1]}
    matrices = {"token_embd": (len(tokens), _WIDTH), "output": (len(tokens), _WIDTH)}
    matrices |= {f"blk.{place}.{name}": shape for place in range(_LAYERS) for name, shape in layer.items()}
    for name, shape in matrices.items():
        kind = GGMLQuantizationType.Q8_0
        blocks = quants.quantize(draw.normal(size=shape).astype(np.float32), kind)
        writer.add_tensor(f"{name}.weight", blocks, raw_dtype=kind)
    for name in ("output_norm", *(f"blk.{place}.{norm}" for place in range(_LAYERS) for norm in ("attn_norm", "ffn_norm"))):
        writer.add_tensor(f"{name}.weight", np.ones(_WIDTH, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
