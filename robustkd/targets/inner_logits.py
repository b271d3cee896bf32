"""The logits behind a squashed answer: what a network computed before a function flattened it.

A softmax that is sure, an exponential far from its centre or a clipped logarithm leaves the decision as it is and takes the slope
away. Such a function is found by what goes into it: an earlier tensor of the forward pass, of the answer's shape, whose largest
entry is that of the answer on every sample. Its gradient leads where the answer's would lead if it had one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

_CHANCE = 1e-4
"""How probable it may be that a tensor of random numbers agrees with the answers that were seen."""
_UNEVEN = 10.0
"""Margins of the answer in multiples of those of the earlier tensor: between two samples, they differ by more where it is squashed."""


class InnerLogits:
    """Finds the earliest such tensor, from pass to pass. A tensor is known by its number among those of the answer's width."""

    def __init__(self) -> None:
        self._agreeing: set[int] | None = None
        self._rows = 0
        self._ratios: dict[int, tuple[float, float]] = {}

    def of(self, answers: Tensor, earlier: Sequence[Tensor]) -> Tensor | None:
        """(B, K) scores behind ``answers``, of the ``earlier`` matrices of a pass in their order; None where nothing is squashed.

        Where several classes share the highest answer, the scores are the answers: the decision is always that of the answers.
        """
        rows, classes = answers.shape
        highest = answers.detach().amax(1)
        agreeing = set()
        for number, tensor in enumerate(earlier):
            if tensor.shape != answers.shape or not (self._agreeing is None or number in self._agreeing):
                continue
            if answers.requires_grad and not tensor.requires_grad:
                continue
            chosen = answers.detach().gather(1, tensor.detach().argmax(1, keepdim=True)).squeeze(1)
            if torch.equal(chosen, highest):
                agreeing.add(number)
                self._note(number, answers.detach(), tensor.detach())
        self._agreeing = agreeing
        self._rows += rows
        if self._rows * math.log(classes) < -math.log(_CHANCE):
            return None
        squashed = [number for number in sorted(agreeing) if self._uneven(number)]
        if not squashed:
            return None
        inner = earlier[squashed[0]]
        same = (inner.argmax(1) == answers.argmax(1)).unsqueeze(1)
        return torch.where(same, inner, answers)

    def _note(self, number: int, answers: Tensor, earlier: Tensor) -> None:
        ratios = _margin(answers) / _margin(earlier).clamp_min(torch.finfo(earlier.dtype).tiny)
        low, high = self._ratios.get(number, (math.inf, 0.0))
        self._ratios[number] = min(low, float(ratios.min())), max(high, float(ratios.max()))

    def _uneven(self, number: int) -> bool:
        low, high = self._ratios[number]
        return high > _UNEVEN * low


def _margin(scores: Tensor) -> Tensor:
    """(B,) the best score less the second best."""
    best, second = scores.topk(2, dim=1).values.unbind(1)
    return best - second
