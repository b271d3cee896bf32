"""TRS: transferability reduced smooth ensemble. Gradients at right angles, and short ones all over the ball.

    min  1/M sum_m CE(f_m(x), y)  +  2 / (M (M - 1)) sum_{i<j} ( lambda_a * |cos(g_i, g_j)|  +  lambda_b * (|g_i'| + |g_j'|) )

    g_m = grad_x CE(f_m(x), y),      g_m' the same at x' = argmax_{x' in ball(x)} sum_m |grad_x CE(f_m(x'), y)|

Small cosines alone bound the transfer only between smooth networks: hence the second term, whose ball (``delta``, linf) grows with
the epochs. All gradients are differentiated once more.

Good against transfer at small eps. Second derivatives make a step expensive, and they punish length and angle of gradients,
so look for masked ones.

Source: Yang et al.: TRS: transferability reduced ensemble via promoting gradient diversity and model smoothness (NeurIPS 2021),
section 4. The inner steps and the growth of the ball are those of the authors' code. The rest of the defaults is not: that code takes
gradients of the minibatch's mean loss and squares their lengths, so that its smoothness term is about 1 / B^2 of this one, adds the
members' losses instead of averaging them, and measures smoothness at the clean image. At our scale ``lambda_b`` costs clean accuracy and
is most of the robustness, which is not the paper's claim.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

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
from robustkd.lazy import torch
from robustkd.targets import EnsembleTarget

if TYPE_CHECKING:
    from torch import Tensor


class TRSParams(MembersParams):
    """Parameters of ``trs``."""

    optimiser: Literal["sgd", "adam", "adamw"] = Field("adam", description="the update rule")
    lambda_a: float = Field(40.0, ge=0, description="weight of the gradients' cosines")
    lambda_b: float = Field(2.5, ge=0, description="weight of the gradients' lengths")
    delta: float = Field(0.03, gt=0, description="radius of the ball in the last epoch, in pixel units")
    first_delta: float = Field(0.01, ge=0, description="radius in the first epoch")
    steps: int = Field(6, ge=1, description="steps of the search for long gradients, each of delta / 3")


class GradientLengths(WrappedTarget):
    """An ensemble that answers with the (B, M) lengths of its members' loss gradients."""

    def __init__(self, target: EnsembleTarget, labels: Tensor) -> None:
        super().__init__(target)
        self._networks, self.labels = target.members, labels

    def __call__(self, inputs: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, M)."""
        return input_gradients(self._networks, inputs, self.labels)[1].norm(dim=2).T


def roughest(target: EnsembleTarget, batch: Minibatch, delta: float, steps: int) -> Tensor:
    """x' (B, C, H, W): PGD from a uniform point; the target is left as found and no weight gets a gradient."""
    samples = Batch(batch.x, batch.y, batch.index)
    ball = Ball.around(batch.x, delta, "linf", target.bounds)
    with frozen(target.module):
        return last_iterate(
            Oracle(GradientLengths(target, batch.y), samples),
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
        """mean CE + lambda_a * mean |cos| + lambda_b * 2 * mean |g'|, the last being what the sum over pairs comes to."""
        p = self.params
        delta = p.first_delta + (p.delta - p.first_delta) * batch.epoch / max(p.epochs - 1, 1)
        rough = roughest(target, batch, delta, p.steps)
        logits, gradients = input_gradients(target.members, batch.x, batch.y)
        similarity = cosines(gradients).abs().mean()
        smoothness = 2 * input_gradients(target.members, rough, batch.y)[1].norm(dim=2).mean()
        loss = cross_entropies(logits, batch.y).mean() + p.lambda_a * similarity + p.lambda_b * smoothness
        return loss, {"similarity": similarity, "smoothness": smoothness}


class TRS(MembersDefense):
    """An ensemble of smooth members with gradients at right angles."""

    Params = TRSParams
    source = "Yang et al. 2021, arXiv:2104.00671"

    def fit(self, context: FitContext) -> Target:
        """Train the members in one training; the epoch is chosen as ``selection`` says."""
        p = self.params
        return train(context, EnsembleTarget(first_members(context, p)), TRSRecipe(p), p)
