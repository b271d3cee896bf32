"""Losses with a backward pass of their own. Importing it imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.autograd.function import once_differentiable

from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class CrossEntropy(torch.autograd.Function):
    """Cross entropy whose gradient stays exact where the network is sure.

    The usual gradient, softmax(z) - onehot(y), contains p_y - 1, of which float32 keeps no digit where p_y is 1 - 1e-7 and more:
    an attack then starts in a direction that is noise, or in none. Here it is -sum_{j != y} p_j, which is the same number.

    In double precision, because exponentials in float32 are rounded otherwise in one place of a batch than in another; in float32
    on a device that has no more, where a gradient may then differ by 1e-6 of itself with the sample's place.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        """(B, K) logits and (B,) labels -> (B,)."""
        own = labels.unsqueeze(1)
        log_p = logits.to(widest(logits)).log_softmax(1)
        gradient = log_p.exp().scatter_(1, own, 0.0)
        rest = gradient.sum(1, keepdim=True)
        ctx.save_for_backward(gradient.scatter_(1, own, -rest).to(logits.dtype))
        value = torch.where(rest < 0.5, -torch.log1p(-rest), -log_p.gather(1, own))  # the one that has digits left
        return value.squeeze(1).to(logits.dtype)

    @staticmethod
    @once_differentiable  # a second derivative would silently be another function's
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        """(B,) gradients of the values -> (B, K) of the logits."""
        return upstream.unsqueeze(1) * ctx.saved_tensors[0], None


def widest(values: Tensor) -> torch.dtype:
    """float64 where the device of ``values`` has it (Apple's GPUs do not), else float32."""
    try:
        return values.new_empty((), dtype=torch.float64).dtype
    except (TypeError, RuntimeError, NotImplementedError):
        return torch.float32
