"""Admix: the mean gradient over copies that have a little of another image in them, each at several brightnesses.

    grad_t = 1/(m1 * m2) * sum_{i < m1} sum_{x' in X'} grad_x J((x_t + strength * x') / 2^i, y),   X': m2 images of other classes

As mixup it looks at the image where others come near, but the label stays; so what carries over is found on inputs that are nearer to
the boundaries.

Good for transfer; a step costs m1 * m2 gradients. Without other images (strength 0) it is ``si-fgsm``.

Source: Wang et al.: Admix: enhancing the transferability of adversarial attacks (ICCV 2021), algorithm 1. The paper draws X' from the
images of the attacked batch; here they are training images, drawn anew for each sample and step, so that no result depends on which
samples are attacked together.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field
from typing_extensions import override

from robustkd.attacks.image.engine.ascent import AttackState, GradientEstimator
from robustkd.attacks.image.engine.fitting import training_batch
from robustkd.attacks.image.engine.oracle import Objective, Oracle
from robustkd.attacks.image.transferable.momentum import MIFGSM, MomentumParams
from robustkd.contracts import Arrays, Target, ThreatModel, UsageError
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class AdmixGradient:
    """The mean gradient over scaled copies with a share of other images.

    Attributes:
        images: (S, *shape) that are mixed in, and ``labels`` (S,) their classes.
        strength: the share of each.
        mixed, copies: how many of them, and at how many scales.
    """

    rng: SampleRng
    images: Tensor
    labels: Tensor
    strength: float
    mixed: int
    copies: int

    def __call__(self, oracle: Oracle, state: AttackState, objective: Objective, t: int) -> Tensor:
        """(A, *shape): ``mixed * copies`` forward and backward passes."""
        order = self.rng.fork(t).select(state.rows).uniform((len(self.images),))
        order = order - (self.labels == oracle.labels[state.rows].unsqueeze(1)).to(order.dtype)  # of the own class: last
        total = torch.zeros_like(state.x)
        for other in order.topk(min(self.mixed, len(self.images))).indices.unbind(1):
            mixture = state.x + self.strength * self.images[other].to(state.x.dtype)
            for power in range(self.copies):
                scale = 0.5**power
                total += scale * oracle.value_and_grad(scale * mixture, state.rows, objective)[2]
        return total / (min(self.mixed, len(self.images)) * self.copies)


class AdmixParams(MomentumParams):
    """The images that are mixed in, their share, and the scaled copies."""

    mixed: int = Field(3, ge=1, description="other images at each step (m2 of the paper)")
    strength: float = Field(0.2, ge=0, description="share of the other image (eta of the paper)")
    copies: int = Field(5, ge=1, description="copies at 1, 1/2, 1/4, .. of the brightness (m1 of the paper)")
    samples: int = Field(200, ge=1, description="training images to draw from, at most")


class Admix(MIFGSM):
    """Admix, with momentum, on inputs of any shape."""

    Params = AdmixParams
    learns = True
    version = "1"
    source = "Wang et al. 2021, arXiv:2102.00436"

    def __init__(self, params: Any = None) -> None:
        super().__init__(params)
        self.images: Tensor | None = None
        self.labels: Tensor | None = None

    def fit(self, target: Target, data: Arrays, threat: ThreatModel, rng: SampleRng) -> Self:
        """A copy of this attack that holds the images to mix in; the target is not asked."""
        batch, _ = training_batch(data, self.params.samples, rng)
        fitted = copy(self)
        fitted.images, fitted.labels = batch.inputs, batch.labels
        return fitted

    @override
    def estimator(self, threat: ThreatModel, rng: SampleRng) -> GradientEstimator:
        p = self.params
        if self.images is None or self.labels is None:
            raise UsageError("admix must be given images to mix in before it is used", fix="call fit, and run what it returns")
        return AdmixGradient(rng, self.images, self.labels, p.strength, p.mixed, p.copies)
