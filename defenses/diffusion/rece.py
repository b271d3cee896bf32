"""RECE: unified concept editing, and again of the embeddings that would bring the concept back (Gong et al. 2024, section 4.2).

    W' = UCE's edit of W                                                   as in ``uce``
    c' = (ridge I + sum_W W'^T W')^-1 (sum_W W'^T W) c                     what is to the edited projections as c was to the original ones
    W' <- UCE's edit of W' in which c' takes the erased tokens' place      ``rounds`` times; the sums are over keys and values of all layers

``rounds: 0`` is ``uce``, its control. As read in the authors' code: the closed form, 3 rounds, ridge 0.1 (``derived_ridge``), and that
the kept tokens are preserved in each of the edits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pydantic import Field
from typing_extensions import override

from robustkd.defenses.diffusion.uce import UCE, UCEParams, edited
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class RECEParams(UCEParams):
    rounds: int = Field(3, ge=0, description="how often embeddings that bring the concept back are derived and erased")
    derived_ridge: float = Field(0.1, gt=0, description="of the closed form of these embeddings")


class RECE(UCE):
    """Edit the cross-attention, and edit it again for what the edit has left."""

    Params = RECEParams
    source = (
        "Gong et al., Reliable and efficient concept erasure of text-to-image diffusion models, ECCV 2024, arXiv:2407.12383"
    )

    @override
    def edited(self, weights: Iterable[Tensor], erased: Tensor, instead: Tensor, kept: Tensor) -> Iterable[Tensor]:
        p, originals = self.params, list(weights)
        weights, rows = originals, erased
        for _ in range(p.rounds + 1):
            weights = [edited(weight, rows, instead, kept, p.preserve, p.ridge) for weight in weights]
            rows = returning(originals, weights, erased, p.derived_ridge)
        return weights


def returning(originals: Sequence[Tensor], weights: Sequence[Tensor], tokens: Tensor, ridge: float) -> Tensor:
    """(N, D) the embeddings that are to edited projections what (N, D) ``tokens`` are to the original ones.

    Each minimises sum over the projections of ||W' c' - W c||^2 + ridge ||c'||^2.

    Args:
        originals, weights: (out, D) projections W and W', pair by pair.
    """
    gram = ridge * torch.eye(tokens.shape[1], dtype=tokens.dtype) + sum(new.T @ new for new in weights)
    wanted = sum((new.T @ old for new, old in zip(weights, originals, strict=True)), torch.zeros_like(gram))
    return torch.linalg.solve(gram, wanted @ tokens.T).T
