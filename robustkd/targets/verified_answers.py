"""Answers that a verifier looks at: what a detector's scorer offers that compares them, and an answer that was tampered with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from robustkd.contracts import Target
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


@runtime_checkable
class ScoresAnswers(Protocol):
    """A scorer that compares the answer of the watched model with a verifier's.

    Attributes:
        verifier: the other model, of the same classes.
    """

    verifier: Target

    def of_answers(self, p: Tensor, q: Tensor) -> Tensor:
        """(B,) the scores of (B, K) probabilities of the watched model, beside the verifier's (B, K)."""
        ...


def tampered(p: Tensor) -> Tensor:
    """(B, K) probabilities with the two largest swapped."""
    first, second = p.topk(2, dim=1).indices.unbind(1)
    rows = torch.arange(len(p), device=p.device)
    swapped = p.clone()
    swapped[rows, first], swapped[rows, second] = p[rows, second], p[rows, first]
    return swapped
