"""The inner maximisation of adversarial training: max over the ball of CE(f(x'), y), by PGD on the current weights.

    x_0   = a point near x
    x_t+1 = project(x_t + size * steepest(grad_x CE(f(x_t), y)))

It is the attack engine's loop (exactly ``steps`` passes each way, gradients of the input alone), with the network in evaluation
mode, as TRADES and MTARD have it: BatchNorm uses the statistics it will be deployed with and does not learn from unfinished
examples, dropout is off. (Rice et al. attack in train mode.)

Source: Madry et al.: Towards deep learning models resistant to adversarial attacks (ICLR 2018), equation 2.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from robustkd.attacks.image.ascent import SteepestStep, climb_to_last
from robustkd.attacks.image.ball import Ball
from robustkd.attacks.image.objective import for_batch
from robustkd.attacks.image.pgd import PGD
from robustkd.attacks.oracle import Oracle, frozen
from robustkd.contracts import Batch, Params, ThreatModel, UsageError
from robustkd.defenses.training.batches import Minibatch
from robustkd.targets import ClassifierTarget

Start = Literal["uniform", "noise", "clean"]
NOISE = 0.001
"""Deviation of the ``noise`` start, in pixel units: the value of TRADES and MTARD."""


class InnerMaximisation(Params):
    """How the examples to train on are made; the norm is the campaign's."""

    kind: Literal["pgd"] = Field("pgd", description="projected gradient ascent of the cross entropy")
    steps: int = Field(10, ge=1, description="steps for each example")
    eps: float | None = Field(None, gt=0, description="radius in pixel units; default the campaign's")
    step_size: float | None = Field(None, gt=0, description="in pixel units; default eps / 4")
    start: Start = Field("uniform", description="a uniform point of the ball, x plus noise 0.001 * N(0, 1), or x itself")


@dataclass(frozen=True)
class Adversary:
    """The inner maximisation with everything decided.

    Attributes:
        threat: norm and radius.
        steps, step_size, start: see ``InnerMaximisation``.
    """

    threat: ThreatModel
    steps: int
    step_size: float
    start: Start

    @classmethod
    def under(cls, inner: InnerMaximisation, threat: ThreatModel) -> Adversary:
        """What ``inner`` means under the campaign's threat model.

        Raises:
            UsageError: examples of that kind cannot be made by projected gradient ascent.
        """
        eps = inner.eps if inner.eps is not None else threat.eps
        trained_against = ThreatModel(norm=threat.norm, eps=eps, space=threat.space)
        reason = PGD().refusal(trained_against)
        if reason is not None:
            fix = f"use a threat model in pixels with one of the norms {', '.join(PGD.norms)}"
            raise UsageError(f"adversarial training is done with PGD, which {reason}", fix=fix)
        return cls(trained_against, inner.steps, inner.step_size if inner.step_size is not None else eps / 4, inner.start)

    def __call__(self, target: ClassifierTarget, batch: Minibatch) -> Tensor:
        """x~ (B, C, H, W) inside the ball and the pixel range; the target is left as found and no weight gets a gradient."""
        samples = Batch(batch.x, batch.y, batch.index)
        ball = Ball.around(batch.x, self.threat.eps, self.threat.norm, target.bounds)
        with frozen(target.module):
            return climb_to_last(
                Oracle(target, samples),
                torch.arange(len(samples), device=batch.x.device),
                ball,
                self._start(ball, batch),
                objective=for_batch("ce", samples),
                rule=SteepestStep(self.step_size),
                steps=self.steps,
            )

    def _start(self, ball: Ball, batch: Minibatch) -> Tensor:
        if self.start == "clean":
            return batch.x
        rng = batch.rng("inner")
        if self.start == "uniform":
            return ball.random_point(rng)
        # The projection only matters for an eps of the size of the noise, and for pixels at the end of their range.
        return ball.project(batch.x + NOISE * rng.normal(batch.x.shape[1:], dtype=batch.x.dtype))
