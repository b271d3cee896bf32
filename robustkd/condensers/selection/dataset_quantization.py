"""Dataset Quantization: the data are cut into bins, the first of which stand for the rest best, and a share is drawn from every bin.

    bin_j = greedily  argmax_x  ( similarity of x to all that is left  -  similarity of x to the bin so far ),    N / n images each
    S = the same share of every bin, at random

A greedy subset alone keeps to the dense middle of the data; what is drawn from later bins keeps its edges.

From the authors: bins by the graph-cut gain in a network's features, the same share of each. From us: each class is cut by itself, so that
the set is balanced; the similarity is the cosine. Their second step, patches that are dropped and filled in by a masked autoencoder, is
left out.

Control: ``bins: 1``, which is ``random-subset``.

Source: Zhou et al.: Dataset quantization (ICCV 2023), arXiv:2308.10524, section 3; settings as in the authors' code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from robustkd.condensers.engine.embedding import embedded
from robustkd.condensers.engine.rows import SelectionParams, generator, rows_by_class
from robustkd.contracts import Arrays, Condenser, FitContext, Params, TargetRef
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class DatasetQuantizationParams(SelectionParams):
    bins: int = Field(10, ge=1, description="n, bins that each class is cut into")
    network: TargetRef | None = Field(
        None, description="the defense whose model's features images are compared by; default their pixels"
    )


class DatasetQuantization(Condenser):
    """A share of every bin of a greedy order."""

    Params: ClassVar[type[Params]] = DatasetQuantizationParams
    source = "Zhou et al. 2023, arXiv:2308.10524"

    def condense(self, context: FitContext[Arrays]) -> Arrays:
        """Cut each class, and draw from its bins; images stay in the type that they have."""
        p, rng, chosen = self.params, generator(context, "rows"), []
        features = embedded(context, p.network) if p.bins > 1 else None
        for rows in rows_by_class(context.train.labels).values():
            bins = [rows] if features is None else [rows[part] for part in cut(features[torch.from_numpy(rows)], p.bins)]
            chosen.append(drawn(bins, p.count(len(rows)), rng))
        return context.train.select(np.sort(np.concatenate(chosen))).kept()


def cut(features: Tensor, bins: int) -> list[np.ndarray]:
    """The rows of the (N, D) ``features`` in at most so many bins, each in the order in which it was filled."""
    unit = features / features.norm(dim=1, keepdim=True).clamp_min(torch.finfo(features.dtype).tiny)
    similarity = unit @ unit.T
    left, found = torch.ones(len(features), dtype=torch.bool), []
    for number in range(min(bins, len(features))):
        size = -(-int(left.sum()) // (min(bins, len(features)) - number))
        to_left, to_bin, own = similarity[:, left].sum(1), torch.zeros_like(similarity[0]), []
        for _ in range(size):
            gain = torch.where(left, to_left - to_bin, -torch.inf)
            row = int(gain.argmax())
            own.append(row)
            left[row] = False
            to_left, to_bin = to_left - similarity[row], to_bin + similarity[row]
        found.append(np.array(own, dtype=np.int64))
    return found


def drawn(bins: list[np.ndarray], count: int, rng: np.random.Generator) -> np.ndarray:
    """(count,) rows, of every bin as many as of the others but for one, at random; of a bin that is used up, what it has."""
    waiting = [list(rng.permutation(rows)[::-1]) for rows in bins]
    found: list[int] = []
    while len(found) < count:
        for rows in waiting:
            if rows and len(found) < count:
                found.append(rows.pop())
    return np.array(found, dtype=np.int64)
