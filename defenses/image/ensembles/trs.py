"""TRS: transferability reduced smooth ensemble. Members whose loss gradients are at right angles, and short.

    min  sum_m CE(f_m(x), y)  +  lambda_a * mean over pairs i < j of |cos(g_i, g_j)|  +  lambda_b * mean over m of 2 * |g_m|^2

``g_m`` is the gradient at an image of the minibatch's mean loss: grad_x CE(f_m(x), y) / B. Small cosines alone bound the transfer only
between smooth networks: hence the last term. With ``adversarial`` it is measured for the second half of each minibatch at

    x' = argmax_{x' in ball(x)} sum_m |grad_x CE(f_m(x'), y)|^2,      in a ball (``delta``, linf) that grows with the epochs

All gradients are differentiated once more.

Good against transfer at small eps. Second derivatives make a step expensive, and they punish length and angle of gradients,
so look for masked ones.

Source: Yang et al.: TRS: transferability reduced ensemble via promoting gradient diversity and model smoothness (NeurIPS 2021),
section 4. The loss and the defaults are those of the authors' code (AI-secure/Transferability-Reduced-Smooth-Ensemble), whose
coeff and lamda of 2 with scale 5 are the two weights of 10; ``adversarial`` is its ``--plus-adv``, which is off there too. The paper
itself does not square the lengths and measures them at x' for all images. B is ``batch_size`` here, also for a last, smaller minibatch,
so that the loss does not depend on how many processes share it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from robustkd.attacks.image.engine.ascent import SteepestStep, last_iterate
from robustkd.attacks.image.engine.ball import Ball, StepSize
from robustkd.attacks.image.engine.oracle import Oracle, frozen
from robustkd.contracts import Batch, FitContext, Target, WrappedTarget
from robustkd.defenses.training import Minibatch, Recipe, train
from robustkd.defenses.training.members import (
    MembersDefense,
    MembersParams,
    cosines,
    cross_entropies,
    first_members,
    input_gradients,
)
from robustkd.defenses.training.params import EpochsParam, OptimiserParam
from robustkd.lazy import torch
from robustkd.targets import EnsembleTarget

if TYPE_CHECKING:
    from torch import Tensor


class TRSParams(MembersParams):
    milestone_fractions: ClassVar[tuple[float, ...]] = (1 / 3, 2 / 3)

    epochs: EpochsParam = 120
    optimiser: OptimiserParam = "adam"
    lambda_a: float = Field(10.0, ge=0, description="weight of the gradients' cosines")
    lambda_b: float = Field(10.0, ge=0, description="weight of the gradients' squared lengths")
    adversarial: bool = Field(
        False, description="measure the lengths at the worst points of the ball for half of the images, not at the clean ones"
    )
    delta: float = Field(
        0.2, gt=0, description="for adversarial: radius that the ball grows to by the last epoch, in pixel units"
    )
    first_delta: float = Field(0.1, ge=0, description="for adversarial: radius in the first epoch")
    steps: int = Field(
        6, ge=1, description="for adversarial: steps of the search for long gradients, each of a third of the radius"
    )


class SquaredLengths(WrappedTarget):
    """An ensemble that answers with the (B, M) squared lengths of its members' loss gradients."""

    def __init__(self, target: EnsembleTarget, labels: Tensor) -> None:
        super().__init__(target)
        self._networks, self.labels = target.members, labels

    def __call__(self, inputs: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, M)."""
        return input_gradients(self._networks, inputs, self.labels)[1].square().sum(2).T


def roughest(target: EnsembleTarget, batch: Minibatch, delta: float, steps: int) -> Tensor:
    """x' (B, C, H, W), by PGD from a uniform point; the target is left as found and no weight gets a gradient."""
    samples = Batch(batch.x, batch.y, batch.index)
    ball = Ball.around(batch.x, delta, "linf", target.bounds)
    with frozen(target.module):
        return last_iterate(
            Oracle(SquaredLengths(target, batch.y), samples),
            torch.arange(len(samples), device=batch.x.device),
            ball,
            ball.random_point(batch.rng("roughest")),
            objective=lambda lengths, rows: lengths.sum(1),
            update=SteepestStep(StepSize(delta / 3)),
            steps=steps,
        )


class TRSRecipe(Recipe[EnsembleTarget]):
    """Cross entropy, gradient similarity and smoothness."""

    def __init__(self, params: TRSParams) -> None:
        self.params = params

    def loss(self, target: EnsembleTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """sum CE + lambda_a * mean |cos| + lambda_b * mean 2 |g|^2, with g the gradient of the minibatch's mean loss."""
        p = self.params
        logits, gradients = input_gradients(target.members, batch.x, batch.y)
        similarity = cosines(gradients).abs().mean()
        if p.adversarial:
            gradients = input_gradients(target.members, self.half_rough(target, batch), batch.y)[1]
        smoothness = 2 * (gradients / p.batch_size).square().sum(2).mean()
        loss = cross_entropies(logits, batch.y).sum() + p.lambda_a * similarity + p.lambda_b * smoothness
        return loss, {"similarity": similarity, "smoothness": smoothness}

    def half_rough(self, target: EnsembleTarget, batch: Minibatch) -> Tensor:
        """(B, C, H, W): the first half of the images as they are, x' of the others."""
        p, half = self.params, len(batch.x) // 2
        delta = p.first_delta + (p.delta - p.first_delta) * batch.epoch / p.epochs
        rest = replace(batch, x=batch.x[half:], y=batch.y[half:], index=batch.index[half:])
        return torch.cat([batch.x[:half], roughest(target, rest, delta, p.steps)])


class TRS(MembersDefense):
    """An ensemble of smooth members with gradients at right angles."""

    Params = TRSParams
    version = "2"  # 1 had lengths, not squared, of each image's own gradient at x' for all images, and other weights
    source = "Yang et al. 2021, arXiv:2104.00671"

    def fit(self, context: FitContext) -> Target:
        """Train the members in one training; the epoch is chosen as ``selection`` says."""
        p = self.params
        return train(context, EnsembleTarget(first_members(context, p)), TRSRecipe(p), p)
