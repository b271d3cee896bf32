"""What a text-to-image model's text encoder makes of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

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
