"""DVERGE: members learn from each other's non-robust features, so that no two of them have the same weakness.

For a source image x_s with label y_s and an independent image x, the feature that member j distils is

    x'_j = argmin_{z : |z - x_s|_inf <= eps} || f_j^l(z) - f_j^l(x) ||_2^2          from x_s, 10 momentum-sign steps

it looks like the source to people and like x to member j. With all of them made first, one step of every member i on

    sum_{j != i} CE( f_i(x'_j), y_s )     and with ``adversarial``   + CE( f_i(x~_i), y_s ),  x~_i = argmax_{ball} CE(f_i(x'), y_s)

The layer l is drawn once an epoch; in the features' passes the members are in evaluation mode and only the images get gradients.

Good against transfer: in ``dverge-small`` 54.3 % withstand it, of the plain ensemble 15.4 %. Not meant against an attacker
who has the members: 13.6 % there.

Source: Yang et al.: DVERGE: diversifying vulnerabilities for enhanced robust generation of ensembles (NeurIPS 2020), equations 1
to 4 and algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from robustkd.attacks.image.engine.ascent import last_iterate
from robustkd.attacks.image.engine.ball import Ball, StepSize
from robustkd.attacks.image.engine.oracle import Oracle, frozen
from robustkd.attacks.image.transferable.momentum import MomentumStep
from robustkd.contracts import Batch, FitContext, Target, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.defenses.training import Adversary, InnerMaximisation, Minibatch, Recipe, TrainedUnderAttack, train
from robustkd.defenses.training.augment import crop_flip
from robustkd.defenses.training.batches import Samples
from robustkd.defenses.training.features import AtLayer, Layer, layer_count
from robustkd.defenses.training.members import MembersDefense, MembersParams, PlainMembersRecipe, first_members
from robustkd.defenses.training.seeding import derived_seed
from robustkd.lazy import F, torch
from robustkd.targets import EnsembleTarget, ImageTarget

if TYPE_CHECKING:
    from torch import Tensor


class DVERGEParams(MembersParams):
    """Parameters of ``dverge``. The paper begins with trained members: those that ``start`` names, or ``pretraining``."""

    pretraining: int | None = Field(
        None, ge=0, description="epochs of plain training before, where start names no defenses; default as many as epochs"
    )
    distill_eps: float = Field(0.07, gt=0, description="radius of the distillation's linf ball, in pixel units")
    distill_step: float | None = Field(
        None, gt=0, description="step of the distillation, in pixel units; default distill_eps / 10"
    )
    distill_steps: int = Field(10, ge=1, description="steps of the distillation")
    layers: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="submodules that every member has, whose outputs are distilled; default what enters each activation "
        "function, and the logits",
    )
    adversarial: bool = Field(False, description="also train each member on adversarial examples of its own")
    inner: InnerMaximisation = Field(default_factory=InnerMaximisation, description="with adversarial: how these are made")

    @model_validator(mode="after")
    def _one_beginning(self) -> DVERGEParams:
        if self.start is not None and self.pretraining:
            raise ValueError("start names trained members, pretraining trains fresh ones: give one of them")
        return self


def distilled(
    member: ImageTarget, layer: Layer, source: Tensor, wanted: Tensor, *, eps: float, size: StepSize, steps: int
) -> Tensor:
    """x': images near ``source`` that look to ``member``, at ``layer``, like ``wanted``.

    The features that are wanted are computed once, the images' ``steps`` times; the member is left as found.

    Args:
        source: (B, C, H, W), the centres of the balls and where the steps begin.
        wanted: (B, C, H, W).
    """
    rows = torch.arange(len(source), device=source.device)
    ball = Ball.around(source, eps, "linf", member.bounds)
    with frozen(member.module):
        features = AtLayer(member, layer)
        with torch.no_grad():
            goal = features(wanted)
        return last_iterate(
            Oracle(features, Batch(source, rows, rows)),
            rows,
            ball,
            ball.centre,
            objective=lambda found, rows: -(found - goal[rows]).square().sum(1),
            update=MomentumStep(size, decay=1.0),
            steps=steps,
        )


@lru_cache(maxsize=1)
def partners(count: int, seed: int, epoch: int) -> Tensor:
    """(N,) the row of the image whose features row n is distilled towards: a second, independent order of the epoch."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(derived_seed(seed, f"partners/{epoch}")))


class DVERGERecipe(Recipe[EnsembleTarget]):
    """Each member's cross entropy on what the others distilled.

    Args:
        images: the training images, where the partners are taken from.
        layers: of each member, those to draw from.
        adversary: of ``adversarial``.
        threat: what the deployed epoch is selected against.
        params: the defense's.
    """

    def __init__(
        self,
        images: Samples,
        layers: Sequence[Sequence[Layer]],
        adversary: Adversary | None,
        threat: ThreatModel | None,
        params: DVERGEParams,
    ) -> None:
        self.images, self.layers, self.adversary, self.threat, self.params = images, layers, adversary, threat, params

    def drawn(self, seed: int, epoch: int) -> list[Layer]:
        """Each member's layer in an epoch: one draw, which members of other depths translate to their own."""
        share = derived_seed(seed, f"layer/{epoch}") / 2**63
        return [layers[int(share * len(layers))] for layers in self.layers]

    def wanted(self, batch: Minibatch) -> Tensor:
        """x: an independent image for each of the minibatch."""
        rows = partners(len(self.images), batch.seed, batch.epoch)[batch.index.cpu()]
        x, _ = self.images.take(rows)
        if self.params.augment == "crop-flip":
            x = crop_flip(x, SampleRng(batch.seed, rows.to(x.device), f"augment/wanted/epoch/{batch.epoch}"))
        return x

    def loss(self, target: EnsembleTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """sum_i sum_{j != i} CE(f_i(x'_j), y_s), and the adversarial part."""
        p, wanted = self.params, self.wanted(batch)
        size = StepSize(p.distill_step, share=1 / 10)
        images = [
            distilled(member, layer, batch.x, wanted, eps=p.distill_eps, size=size, steps=p.distill_steps)
            for member, layer in zip(target.members, self.drawn(batch.seed, batch.epoch), strict=True)
        ]
        own = [self.adversary(member, batch) for member in target.members] if self.adversary is not None else []
        parts = {"loss_distilled": self._on_others(target, images, batch.y)}
        if own:
            losses = [F.cross_entropy(member(x), batch.y) for member, x in zip(target.members, own, strict=True)]
            parts["loss_adversarial"] = torch.stack(losses).sum()
        return torch.stack(list(parts.values())).sum(), parts

    def _on_others(self, target: EnsembleTarget, images: Sequence[Tensor], labels: Tensor) -> Tensor:
        # A pass for each pair: BatchNorm normalises by one distiller's images at a time, as in the authors' code.
        losses = [
            F.cross_entropy(member(x), labels)
            for i, member in enumerate(target.members)
            for j, x in enumerate(images)
            if i != j
        ]
        return torch.stack(losses).sum()


class DVERGE(TrainedUnderAttack, MembersDefense):
    """An ensemble whose members' vulnerabilities differ."""

    Params = DVERGEParams
    source = "Yang et al. 2020, arXiv:2009.14720"

    def __init__(self, params: Any = None) -> None:
        super().__init__(params)
        self.uses_threat = self.params.adversarial

    def fit(self, context: FitContext) -> Target:
        """Train the members plainly, unless trained ones are named, then on each other; each training resumes on its own."""
        p = self.params
        target = EnsembleTarget(first_members(context, p))
        pretraining = p.epochs if p.pretraining is None else p.pretraining
        if p.start is None and pretraining:
            self._pretrain(context, target, pretraining)
        layers = [p.layers or range(layer_count(member)) for member in target.members]
        adversary = Adversary.under(p.inner, context.threat) if p.adversarial else None
        threat = context.threat if p.adversarial else None
        recipe = DVERGERecipe(Samples(context.train, context.device), layers, adversary, threat, p)
        return train(replace(context, checkpoints=context.checkpoints / "together"), target, recipe, p)

    def _pretrain(self, context: FitContext, target: EnsembleTarget, epochs: int) -> None:
        def log(epoch: int, metrics: Mapping[str, float]) -> None:
            context.log(epoch, {f"pretraining_{name}": value for name, value in metrics.items()})

        settings = self.params.model_copy(update={"epochs": epochs, "milestones": None})
        train(replace(context, checkpoints=context.checkpoints / "alone", log=log), target, PlainMembersRecipe(), settings)
