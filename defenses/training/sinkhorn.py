"""The Sinkhorn distance of two sets of answers: what it costs to take one set for the other.

    D_ij = || q_i - p_j ||_1,   P = exp(-D / eps) with rows and columns brought to sum 1 in turn,   SD = 1/B sum_ij P_ij D_ij

Source: Cui et al.: Sinkhorn distance minimization for knowledge distillation (COLING 2024), equations 6 to 10.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def sinkhorn_distance(student: Tensor, teacher: Tensor, eps: float, rounds: int) -> Tensor:
    """SD of two (B, K) tables of probabilities."""
    cost = torch.cdist(student, teacher, p=1)
    plan = torch.exp(-cost / eps)
    for _ in range(rounds):
        plan = plan / plan.sum(1, keepdim=True)
        plan = plan / plan.sum(0, keepdim=True)
    return (plan * cost).sum() / len(student)
