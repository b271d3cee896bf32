"""Distributions over tokens: the Euclidean projection onto the probability simplex, and draws from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def project_to_simplex(v: Tensor) -> Tensor:
    """(.., n) -> (.., n), the nearest points with entries >= 0 that sum to 1.

        w_i = max(v_i - theta, 0),   theta = (sum_{j <= r} u_j - 1) / r,   r = max{ j : u_j > (sum_{i <= j} u_i - 1) / j }

    with u the entries of v in descending order: one sort for each point, all of them at once.

    Source: Duchi et al.: Efficient projections onto the l1-ball for learning in high dimensions (ICML 2008), figure 1.
    """
    v = v - v.amax(-1, keepdim=True)  # moves no projection, and keeps the sums small
    u = v.sort(-1, descending=True).values
    excess = u.cumsum(-1) - 1
    count = torch.arange(1, v.shape[-1] + 1, device=v.device, dtype=v.dtype)
    r = (u * count > excess).sum(-1, keepdim=True)
    return (v - excess.gather(-1, r - 1) / r).clamp_min(0)


def draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """(..) int64, one entry of each of the (.., n) distributions, by (..) uniform numbers in [0, 1)."""
    cumulative = weights.cumsum(-1)
    below = cumulative <= uniform.unsqueeze(-1) * cumulative[..., -1:]
    return below.sum(-1).clamp_max(weights.shape[-1] - 1)
