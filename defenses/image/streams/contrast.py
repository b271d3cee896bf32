"""Contrastive losses on unit vectors: each is drawn to those of its own group, and away from all others.

    L = mean over anchors i of  - 1 / |P(i)| sum_{p in P(i)} log  exp(z_i . z_p / tau) / sum_{a != i} exp(z_i . z_a / tau)

P(i) are the others of i's group. With two views of each image as its group this is SimCLR's loss, with labels the supervised contrastive
one, with the means of two views of each class that of prototypes. An anchor that is alone in its group has no term.

Source: Khosla et al.: Supervised contrastive learning (NeurIPS 2020), arXiv:2004.11362, equation 2 (L_out); Chen et al.: SimCLR (ICML
2020), arXiv:2002.05709.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustkd.lazy import F, torch

if TYPE_CHECKING:
    from torch import Tensor


def contrast(points: Tensor, groups: Tensor, tau: float, anchors: int | None = None) -> Tensor:
    """The loss of (N, D) points, which are made of length 1 here, in (N,) groups; 0 where no group has two.

    Args:
        points: what is compared.
        groups: of each point.
        tau: temperature.
        anchors: the first so many points have a term; default all.
    """
    unit = F.normalize(points.float(), dim=1)
    count = len(unit) if anchors is None else anchors
    own = torch.eye(len(unit), dtype=torch.bool, device=unit.device)[:count]
    scores = (unit[:count] @ unit.T / tau).masked_fill(own, -torch.inf)
    log_p = scores.log_softmax(1).masked_fill(own, 0.0)
    friends = (groups[:count, None] == groups) & ~own
    number = friends.sum(1)
    terms = -(log_p * friends).sum(1)[number > 0] / number[number > 0]
    return terms.mean() if len(terms) else unit.sum() * 0


def two_views(first: Tensor, second: Tensor, groups: Tensor, tau: float) -> Tensor:
    """The same of (N, D) points and (N, D) others of the same (N,) groups."""
    return contrast(torch.cat([first, second]), groups.repeat(2), tau)
