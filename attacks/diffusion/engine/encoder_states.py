"""What a text-to-image model's text encoder makes of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from robustkd.contracts import PromptAttack
from robustkd.lazy import torch
from robustkd.targets.text_to_image import TextToImageTarget

if TYPE_CHECKING:
    from torch import Tensor

TOGETHER = 256
"""Prompts that are encoded in one call."""


def encoded(model: TextToImageTarget, prompts: Sequence[str]) -> Tensor:
    """(N, T, D) float32, the text encoder's states at all positions of each prompt."""
    return _states(model, model.tokenize(prompts))


def end_states(model: TextToImageTarget, prompts: Sequence[str]) -> Tensor:
    """(N, D) float32, the text encoder's state at the end of each prompt."""
    ids = model.tokenize(prompts)
    states, end = _states(model, ids), (ids == model.eos).int().argmax(1)
    return states[torch.arange(len(ids), device=states.device), end.to(states.device)]


def _states(model: TextToImageTarget, ids: Tensor) -> Tensor:
    return torch.cat([model.encode(part).tokens.float() for part in ids.split(TOGETHER)])


class TextEncoderAttack(PromptAttack[TextToImageTarget]):
    """An attack that asks a text encoder alone: that of the parameter ``original``, by default the target's own."""

    modalities = ("text-to-image",)
    needs = PromptAttack.needs | {"tokens", "embeddings"}
    needs_of_others = frozenset({"tokens", "embeddings", "denoising"})

    def asked_model(self, target: TextToImageTarget) -> TextToImageTarget:
        """The model whose text encoder is asked."""
        original = self.params.original
        return self.target(original, TextToImageTarget) if original else target
