"""ER-CAT: C-AdvUL whose embedding table is kept from stretching more in one direction than in another.

    min_w  C-AdvUL's loss + spread_weight * std(singular values of the embedding table)

An attack on the embeddings goes as far in words as the table is stretched: with equal singular values a ball in one
is a ball in the other. Its control is ``spread_weight: 0``, which is ``c-advul`` with these weights.

Source: ER-CAT (Fu et al., ICLR 2026; the paper was not at hand) by the authors' code, continuous-adv-icl,
src/cont_at.py and configs/train/trainer-ercat.yaml, read: the sample standard deviation of the singular values at
0.5, toward and away at 0.1 each, cut off at 1 and 3, 60 steps with 8 harmful and 56 harmless conversations, eps 0.05
(there a length). Theirs trains LoRA on the embedding among others, with gradient steps of 0.01 at 2e-4; here all
weights are tuned. Its cut-off is 0.999 of the bound plus 0.001 of the loss; ours the bound itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field
from typing_extensions import override

from robustkd.defenses.text.c_advul import CAdvUL, CAdvULParams
from robustkd.lazy import torch
from robustkd.targets.causal_lm import CausalLMTarget

if TYPE_CHECKING:
    from torch import Tensor


class ERCATParams(CAdvULParams):
    steps: int = Field(60, ge=1, description="updates of the weights")
    batch_size: int = Field(64, ge=1, description="conversations in each step")
    toward_weight: float = Field(0.1, ge=0, description="weight of the refusal's loss")
    away_weight: float = Field(0.1, ge=0, description="weight of the withheld answer's loss")
    toward_cut_off: float = Field(1.0, ge=0, description="a refusal's loss below it is good enough")
    away_cut_off: float = Field(-3.0, le=0, description="a withheld answer's loss below it is good enough")
    spread_weight: float = Field(
        0.5, ge=0, description="weight of the spread of the embedding's singular values; 0: the control"
    )


class ERCAT(CAdvUL):
    """Tuned like ``c-advul``, with a table of embeddings that is stretched evenly."""

    Params = ERCATParams
    source = "arXiv:2604.12817"
    version = "1"

    @override
    def regulariser(self, target: CausalLMTarget) -> Tensor | None:
        weight: float = self.params.spread_weight
        return weight * spread(target.embedding.weight) if weight else None


def spread(table: Tensor) -> Tensor:
    """The sample standard deviation of the singular values of a (V, D) table, differentiable in it."""
    return torch.linalg.svdvals(table.float()).std()
