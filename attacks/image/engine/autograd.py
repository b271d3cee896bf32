"""Losses with a backward pass of their own. Importing it imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.autograd.function import once_differentiable

from robustkd.attacks.image.engine import loss_gradients
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class CrossEntropy(torch.autograd.Function):
    """``loss_gradients.cross_entropy`` as a part of a graph, for a loss that is made of it and of more."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        """(B, K) logits and (B,) labels -> (B,)."""
        value, slope = loss_gradients.cross_entropy(logits, labels)
        ctx.save_for_backward(slope)
        return value

    @staticmethod
    @once_differentiable  # a second derivative would silently be another function's
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        """(B,) gradients of the values -> (B, K) of the logits."""
        return upstream.unsqueeze(1) * ctx.saved_tensors[0], None
