"""What is remembered of tasks that are over: a few images of each class whose mean stays near that of all, or any images at random.

    p_k = argmin_x || mean_c - 1/k ( f(x) + sum_{i < k} f(p_i) ) ||            herding; f the features before the last layer, of length 1
    the n-th image takes a random place of n, and is kept if that is one of the memory's       reservoir

In a reservoir every image that was seen is kept with the same probability, whatever its class and its task.

Source: herding: Rebuffi et al.: iCaRL (CVPR 2017), arXiv:1611.07725, algorithm 4. Reservoir: Vitter: Random sampling with a reservoir
(ACM TOMS 1985), algorithm R.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

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


class Reservoir:
    """So many rows of a stream whose length is not known beforehand.

    Args:
        size: at most so many.
        rng: what draws.

    Attributes:
        rows: what is kept.
    """

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self.size, self.rows, self._rng, self._seen = size, list[int](), rng, 0

    def add(self, rows: Iterable[int]) -> None:
        """Show it more of the stream."""
        for row in rows:
            self._seen += 1
            if len(self.rows) < self.size:
                self.rows.append(row)
            elif (place := int(self._rng.integers(self._seen))) < self.size:
                self.rows[place] = row
