"""k-centre: images such that no other of their class is far from all of them.

    S_0 = the image that is nearest to its class's mean
    S_t+1 = S_t + argmax_{x not in S_t} min_{s in S_t} || f(x) - f(s) ||,     in each class by itself

f are the features in front of a network's last linear layer, or the pixels. The greedy choice is at most twice as far from its farthest
image as the best choice would be.

Control: ``random-subset``.

Source: Sener, Savarese: Active learning for convolutional neural networks: a core-set approach (ICLR 2018), arXiv:1708.00489, algorithm 1
(the greedy one). To start at the image next to the mean is ours; the baselines of dataset distillation choose within each class, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from robustkd.condensers.engine.embedding import embedded
from robustkd.condensers.engine.rows import SelectionParams, rows_by_class
from robustkd.contracts import Arrays, Condenser, FitContext, Params, TargetRef
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class KCentreParams(SelectionParams):
    network: TargetRef | None = Field(
        None, description="the defense whose model's features images are compared by; default their pixels"
    )


class KCentre(Condenser):
    """Greedy farthest-first choice in each class."""

    Params: ClassVar[type[Params]] = KCentreParams
    source = "Sener & Savarese 2018, arXiv:1708.00489"

    def condense(self, context: FitContext[Arrays]) -> Arrays:
        """Choose in each class; images stay in the type that they have."""
        features, chosen = embedded(context, self.params.network), []
        for rows in rows_by_class(context.train.labels).values():
            chosen.append(rows[farthest_first(features[torch.from_numpy(rows)], self.params.count(len(rows)))])
        return context.train.select(np.sort(np.concatenate(chosen))).kept()


def farthest_first(features: Tensor, count: int) -> np.ndarray:
    """(count,) int64: rows of the (N, D) ``features``, the one next to the mean first."""
    chosen = [int((features - features.mean(0)).square().sum(1).argmin())]
    away = (features - features[chosen[0]]).square().sum(1)
    while len(chosen) < count:
        away[chosen[-1]] = -1  # that an image is there twice must not choose it twice
        chosen.append(int(away.argmax()))
        away = torch.minimum(away, (features - features[chosen[-1]]).square().sum(1))
        away[chosen] = -1
    return np.array(chosen, dtype=np.int64)
