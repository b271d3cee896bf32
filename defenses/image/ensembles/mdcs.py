"""MDCS: experts for the frequent, the middle and the rare classes of a long tail, each of which agrees with itself on a harder view.

    z_e(x) = f_e(x) + lambda_e * log n             n the numbers of training images of the classes
    min  sum_e  1/2 CE(z_e(x), y) + 1/2 CE(z_e(x'), y)  +  weight * min(epoch / warmup, 1) * KL( sg(p_e(x)) || p_e(x') )

x' is x shifted, mirrored and with a square erased; p_e = softmax(z_e); the divergence is the mean over the samples whose x the expert
classifies rightly by z_e. What is deployed is the ensemble of the f_e: an expert with lambda 1 favours no class, one with -0.5 the
frequent and one with 2.5 the rare ones.

Good to ask whether experts that differ by their classes are harder to transfer between (as DVERGE's are), and whether the tail is more
attackable than the head: give the data ``imbalance``, and the campaign ``groups``. Controls: ``priors: [0, 0, 0]`` with ``weight: 0``,
which are plain members, and each of the two by itself. On balanced data the priors change nothing.

Source: Zhao et al.: MDCS: more diverse experts with consistency self-distillation for long-tailed recognition (ICCV 2023),
arXiv:2308.09922; the authors' code was read (model/loss.py). From the authors: the priors, the losses and their weights. From us: the
experts are networks that share nothing, where theirs share their first layers; their probabilities are averaged, not their logits; a
class without images counts as one with one, where theirs adds 1e-9 to the power; the harder view.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field, model_validator

from robustkd.contracts import FitContext, Target
from robustkd.defenses.training import Minibatch, Recipe, kl, train
from robustkd.defenses.training.augment import crop_flip
from robustkd.defenses.training.members import MembersDefense, MembersParams, cross_entropies, first_members, outputs
from robustkd.lazy import torch
from robustkd.targets import EnsembleTarget

if TYPE_CHECKING:
    from torch import Tensor


class MDCSParams(MembersParams):
    priors: tuple[float, ...] = Field(
        (-0.5, 1.0, 2.5), description="lambda of each expert: below 0 for frequent classes, above 1 for rare ones"
    )
    weight: float = Field(0.6, ge=0, description="of the agreement with the harder view")
    warmup: int = Field(20, ge=0, description="epochs in which that weight rises from 0")

    @model_validator(mode="after")
    def _one_prior_each(self) -> MDCSParams:
        count = self.members if self.start is None else len(self.start)
        if len(self.priors) != count:
            raise ValueError(f"{len(self.priors)} priors for {count} experts: give one for each")
        return self


def harder(batch: Minibatch) -> Tensor:
    """(B, C, H, W) the images shifted and mirrored, each with a square of half its size set to zero, drawn for each sample and epoch."""
    x = crop_flip(batch.x, batch.rng("view"))
    draws, sides = batch.rng("erased").uniform((2,)), x.shape[2:]
    rows, columns = (
        (torch.arange(side, device=x.device) - (drawn * side).long().unsqueeze(1)).abs() * 4 <= side
        for drawn, side in zip(draws.unbind(1), sides, strict=True)
    )
    return x * ~(rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1)


class MDCSRecipe(Recipe[EnsembleTarget]):
    """Cross entropies of the shifted logits at two views, and the agreement of these.

    Args:
        counts: (K,) training images of each class.
        params: the defense's.
    """

    supports_data_parallel = False  # the mean over the samples that an expert classifies rightly is of a whole minibatch

    def __init__(self, counts: np.ndarray, params: MDCSParams) -> None:
        self.params = params
        log = np.log(np.maximum(counts, 1))
        self.shifts = torch.tensor(np.outer(params.priors, log), dtype=torch.float32)

    def loss(self, target: EnsembleTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum over the experts."""
        p, count = self.params, len(batch.x)
        both = outputs(target.members, torch.cat([batch.x, harder(batch)])).float() + self.shifts.to(batch.x.device).unsqueeze(
            1
        )
        hard = cross_entropies(both, torch.cat([batch.y, batch.y])).sum()
        easy, other = both[:, :count], both[:, count:]
        agreement = torch.stack([agreeing(mine, its, batch.y) for mine, its in zip(easy, other, strict=True)]).sum()
        weight = p.weight * (min(batch.epoch / p.warmup, 1.0) if p.warmup else 1.0)
        return hard + weight * agreement, {"loss_agreement": agreement}


def agreeing(easy: Tensor, hard: Tensor, labels: Tensor) -> Tensor:
    """The mean KL(easy || hard) of (B, K) logits over the samples that ``easy``, which gets no gradient, classifies rightly; 0 of none."""
    easy = easy.detach()
    right = easy.argmax(1) == labels
    return (kl(easy, hard, reduction="none") * right).sum() / right.sum().clamp_min(1)


class MDCS(MembersDefense):
    """Experts for a long tail."""

    Params = MDCSParams
    source = "Zhao et al. 2023, arXiv:2308.09922"

    def fit(self, context: FitContext) -> Target:
        """Train the experts together."""
        counts = np.bincount(context.train.labels, minlength=context.num_classes)
        return train(context, EnsembleTarget(first_members(context, self.params)), MDCSRecipe(counts, self.params), self.params)
