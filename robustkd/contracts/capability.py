"""What a target can be asked for, which is what an attack may need."""

from __future__ import annotations

from typing import Literal

from robustkd.contracts.data import Modality

Capability = Literal[
    "logits",
    "respond",
    "prefill",
    "conversation",
    "sampling",
    "gradients",
    "tokens",
    "embeddings",
    "log-probabilities",
    "weights",
    "denoising",
    "members",
    "similarity",
]
"""One thing that a target can be asked for.

- ``logits``: ``__call__`` returns a classifier's (B, K) output. ``respond``: a generative target's answers.
- ``prefill``: it goes on with the beginning of an answer, ``Request.prefill``. ``sampling``: it draws what it answers, by ``Request.seed``.
- ``conversation``: it takes a system message of the request's own, ``Request.system``, and earlier turns, ``Request.turns``.
- ``gradients``: what it computes can be differentiated with respect to its inputs.
- ``tokens``: it has a tokenizer, ``encode`` and ``decode``. ``embeddings``: it has ``embed``, and answers ``Request.embeddings``.
- ``log-probabilities``: ``token_logprobs`` of a language model.
- ``weights``: ``with_weights`` gives the model with others, as somebody who holds them may run it.
- ``denoising``: the noise predictions of a diffusion model; of a classifier, those of the model in front of it.
- ``members``: the classifiers of an ensemble. ``similarity``: how alike two texts are, of a scorer that answers nothing.

The methods are those of ``CausalLMTarget`` and ``TextToImageTarget``.
"""
Capabilities = frozenset[Capability]
"""Everything that one target can be asked for."""

ORDINARY: dict[Modality, Capabilities] = {
    "images": frozenset({"logits", "gradients"}),
    "text": frozenset(
        {"respond", "prefill", "conversation", "gradients", "tokens", "embeddings", "log-probabilities", "weights"}
    ),
    "text-to-image": frozenset({"respond", "sampling", "gradients", "tokens", "embeddings", "denoising"}),
}
"""What robustkd's own target of a modality has: a network, a language model, a diffusion model."""
