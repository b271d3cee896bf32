"""Adam, with moments and age of each sample its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustkd.scoring.distances import per_sample

if TYPE_CHECKING:
    from torch import Tensor

_BETA1, _TINY = 0.9, 1e-8  # Adam's own
# Adam's own 0.999 remembers a thousand gradients. An attack takes some hundred steps and its first gradients are by far the
# largest, so with 0.999 they would hold the steps small to the end.
_BETA2 = 0.99


def adam(memory: dict[str, Tensor], gradient: Tensor, age: Tensor, beta2: float = _BETA2) -> Tensor:
    """(A, *shape) the direction to go down, before the learning rate, in the memory of ``gradient``.

    Args:
        memory: ``first`` and ``second``, (A, *shape) each, zeros at the start: the moments, which are written over.
        gradient: (A, *shape), written over.
        age: (A,) steps since the start, from 0.
        beta2: how much of the second moment stays at each step.

    Source: Kingma & Ba: Adam (ICLR 2015), algorithm 1.
    """
    first, second = memory["first"], memory["second"]
    first.mul_(_BETA1).add_((1 - _BETA1) * gradient)
    second.mul_(beta2).add_(gradient.square().mul_(1 - beta2))
    count = age.to(gradient.dtype) + 1
    scale = (second / per_sample(1 - beta2**count, gradient)).sqrt_().add_(_TINY)
    return gradient.copy_(first).div_(per_sample(1 - _BETA1**count, gradient)).div_(scale)
