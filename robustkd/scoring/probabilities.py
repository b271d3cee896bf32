"""Probabilities of classes, and the logits that they stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def log_of_probabilities(probabilities: Tensor) -> Tensor:
    """log p. One that float32 has rounded to 0 becomes that of the smallest normal number, about 1e-38: its logit is not known."""
    probabilities = probabilities.to(torch.promote_types(probabilities.dtype, torch.float32))
    return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()
