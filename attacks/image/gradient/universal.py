"""A universal perturbation: one for all images, found on training images.

    max_d  mean_i  min( J(f(x_i + d), y_i), c ),   ||d|| <= eps

    d_{t+1} = project( d_t + size_t * steepest( sum over a minibatch of grad_d min(J, c) ) ),   d_0 = 0

The ceiling c keeps samples that are broken anyway from pulling at d. What is reported is what d does to images that it was not
fitted to: a defense on which that succeeds is broken once and for all, with no further computation.

Good for an attacker who cannot compute at attack time. It is far weaker than attacking each image.

Source: Moosavi-Dezfooli et al.: Universal adversarial perturbations (CVPR 2017); by minibatch ascent on a clipped loss, Shafahi
et al.: Universal adversarial training (AAAI 2020). Here the step size falls to zero linearly, so that the last perturbation is the
one to keep.
"""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field

from robustkd.attacks.image.engine.ascent import Search, SearchResult
from robustkd.attacks.image.engine.ball import Ball
from robustkd.attacks.image.engine.fitting import capped, epochs, training_batch
from robustkd.attacks.image.engine.objective import ChosenLoss, for_batch
from robustkd.attacks.image.engine.oracle import Oracle, frozen
from robustkd.contracts import Arrays, AttackResult, Batch, Params, Target, ThreatModel, UsageError
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class UniversalParams(Params):
    """How many images the perturbation is fitted to, and the steps and the loss."""

    samples: int = Field(1000, ge=1, description="training images that it is fitted to, at most")
    epochs: int = Field(10, ge=1, description="passes over them")
    batch_size: int = Field(100, ge=1, description="images in each step")
    step_size: float | None = Field(None, gt=0, description="of the first step, in pixel units; default eps / 4")
    loss: Literal["ce", "margin"] = Field("ce", description="the loss to maximize: cross entropy, or logit margin")
    ceiling: float | None = Field(9.0, gt=0, description="the loss of a sample counts up to here; null for no ceiling")


class Universal(ChosenLoss):
    """One perturbation for all images, found on training images.

    The counts are those of using it: one forward pass a sample (and one for the clean image). Fitting takes ``epochs`` forward and
    backward passes on each of the training images, which belong to none of the attacked samples.
    """

    Params: ClassVar[type[Params]] = UniversalParams
    norms = ("linf", "l2")
    learns = True
    version = "2"
    source = "Moosavi-Dezfooli et al. 2017, arXiv:1610.08401; Shafahi et al. 2020, arXiv:1811.11304"

    def __init__(self, params: Any = None) -> None:
        super().__init__(params)
        self.perturbation: Tensor | None = None

    def fit(self, target: Target, data: Arrays, threat: ThreatModel, rng: SampleRng) -> Self:
        """A copy of this attack that holds the perturbation, (C, H, W), found on ``data``."""
        p = self.params
        low, high = bounds = target.bounds
        batch, rng = training_batch(data, p.samples, rng)
        oracle, objective = Oracle(target, batch), capped(for_batch(p.loss, batch), p.ceiling)
        width = torch.as_tensor(high - low).to(batch.inputs)
        ball = Ball.around(torch.zeros_like(batch.inputs[:1]), threat.eps, threat.norm, (-width, width))
        steps = epochs(p.epochs, p.batch_size, rng)
        size = p.step_size if p.step_size is not None else threat.eps / 4
        delta = ball.centre
        with frozen(target.module):
            for t, rows in enumerate(steps):
                x = batch.inputs[rows] + delta
                _, _, gradient = oracle.value_and_grad(x.clamp(*bounds), rows, objective)
                inside = (x >= low) & (x <= high)  # where the clamp cuts, moving on changes nothing
                total = (gradient * inside).sum(0, keepdim=True)
                delta = ball.project(delta + size * (1 - t / len(steps)) * ball.steepest(total, delta))
        fitted = copy(self)
        fitted.perturbation = delta[0]
        return fitted

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """Takes two forward passes a sample, no backward pass.

        Raises:
            UsageError: it was not fitted, or the samples have budgets of their own.
        """
        if self.perturbation is None:
            raise UsageError(
                "a universal perturbation must be fitted before it is used", fix="call fit, and run what it returns"
            )
        if batch.eps is not None:
            raise UsageError("one perturbation for all samples cannot have a budget for each", fix="give a single eps")
        objective = for_batch("margin", batch)
        with frozen(target.module):
            search = Search.begin(target, batch, threat)
            if len(rows := search.standing):
                x = (batch.inputs[rows] + self.perturbation).clamp(*search.ball.bounds)
                logits = search.oracle.logits(x, rows)
                value = objective(logits, rows).to(x.dtype)
                search.record(rows, SearchResult(x, value, search.oracle.is_adversarial(logits, rows)))
            return search.result()
