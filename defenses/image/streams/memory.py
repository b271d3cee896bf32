"""What is remembered of tasks that are over: a few images of each class, chosen so that their mean stays near that of all.

    p_k = argmin_x || mean_c - 1/k ( f(x) + sum_{i < k} f(p_i) ) ||            herding; f the features before the last layer, of length 1

Source: Rebuffi et al.: iCaRL (CVPR 2017), arXiv:1611.07725, algorithm 4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustkd.lazy import F, torch

if TYPE_CHECKING:
    from torch import Tensor


def herded(features: Tensor, count: int) -> list[int]:
    """The rows of (N, D) features that are remembered, the most telling first: at most ``count``, none twice."""
    unit = F.normalize(features, dim=1)
    mean, total, chosen = unit.mean(0), torch.zeros_like(unit[0]), []
    left = torch.ones(len(unit), dtype=torch.bool, device=unit.device)
    for number in range(1, min(count, len(unit)) + 1):
        distance = (mean - (total + unit) / number).square().sum(1)
        row = int(distance.masked_fill(~left, torch.inf).argmin())
        chosen.append(row)
        left[row] = False
        total = total + unit[row]
    return chosen
