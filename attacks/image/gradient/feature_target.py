"""Feature target: an image whose hidden layer is that of another image, so that whatever stands on it says what it says of that one.

    minimize  || f(x') - f(t) ||^2  over the ball,     t a training image of the class that is aimed at, f the encoder
    x_0 = x,   x_t+1 = project(x_t - size * steepest(grad_x))

It sees the hidden layer alone: neither the head nor, of a caption model, the decoder that writes. There the class's name in the caption
is the keyword, and a success is a caption that has it.

Good for an attacker who can look up an encoder and cannot differentiate what follows. Where the threat model has no goal, the class is one
of the others, at random. Through the decoder's loss (``pgd``) the attack is stronger. ``steps: 0`` is the control: a random corner
of the ball.

From the authors (abstract alone): the hidden layer of the encoder as the only thing that is looked at, and a target image whose caption is
wanted. From us: PGD in the place of a generator and a discriminator, one target image a class (the one of ``samples`` whose features
are nearest to their mean), and the class as the keyword.

Source: Aafaq et al.: Controlled caption generation for images through adversarial attacks (2021), arXiv:2107.03050, its abstract, from
memory.
"""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field

from robustkd.attacks.image.engine.ascent import Search, SearchResult, SteepestStep, fixed_budget, maximize
from robustkd.attacks.image.engine.ball import STEEPEST_REVISIONS, Ball, StepSize
from robustkd.attacks.image.engine.feature_losses import squared_distance
from robustkd.attacks.image.engine.fitting import training_batch
from robustkd.attacks.image.engine.objective import for_batch
from robustkd.attacks.image.engine.oracle import Oracle, frozen
from robustkd.attacks.image.gradient.feature_pgd import random_corner
from robustkd.contracts import Arrays, Attack, AttackResult, Batch, Params, Target, ThreatModel, UsageError
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch
from robustkd.targets.encoder import EncoderTarget

if TYPE_CHECKING:
    from torch import Tensor


class FeatureTargetParams(Params):
    """The steps, and among how many training images the target images are looked for."""

    steps: int = Field(20, ge=0, description="steps; 0 is the control, a random corner of the ball")
    step_size: float | None = Field(None, gt=0, description="in pixel units; default 2.5 * eps / steps")
    samples: int = Field(500, ge=1, description="training images, at most, among which there is a target image for each class")


class FeatureTarget(Attack):
    """PGD towards the hidden layer of an image of another class."""

    Params: ClassVar[type[Params]] = FeatureTargetParams
    norms = ("linf", "l2")
    regions = ("given",)
    goals = ("untargeted", "targeted")
    revisions = STEEPEST_REVISIONS
    loss_family = "none"
    learns = True
    source = "Aafaq et al. 2021, arXiv:2107.03050"

    def __init__(self, params: Any = None) -> None:
        super().__init__(params)
        self.wanted: Tensor | None = None

    def fit(self, target: Target, data: Arrays, threat: ThreatModel, rng: SampleRng) -> Self:
        """A copy of this attack that holds (K, D) features of a target image of each class; of one without images their mean."""
        batch, _ = training_batch(data, self.params.samples, rng)
        encoder = EncoderTarget(target, unit=False)
        with frozen(target.module), torch.no_grad():
            features = torch.cat([encoder(part) for part in batch.inputs.split(256)])
        fitted = copy(self)
        classes = target.num_classes - target.rejects
        fitted.wanted = torch.stack([_nearest_to_mean(features, batch.labels == number) for number in range(classes)])
        return fitted

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """Takes at most ``steps + 2`` forward and ``steps`` backward passes a sample, and one for the clean image.

        Raises:
            UsageError: it was not fitted.
        """
        p, margin = self.params, for_batch("margin", batch)
        if self.wanted is None:
            raise UsageError("feature-target must look for its target images first", fix="call fit, and run what it returns")
        places = batch.goals if batch.goals is not None else _others(batch.labels, len(self.wanted), rng)
        wanted = self.wanted.to(batch.inputs.device)[places]

        def attempt(search: Search, rows: Tensor, ball: Ball, number: int) -> SearchResult:
            if not p.steps:
                x = random_corner(ball, rng.fork(number).select(rows))
            else:
                oracle = Oracle(EncoderTarget(target, unit=False), batch)
                oracle.passes = search.oracle.passes
                x = maximize(
                    oracle,
                    rows,
                    ball,
                    ball.centre,
                    objective=lambda features, asked: -squared_distance(features, wanted[asked]),
                    update=SteepestStep(StepSize(p.step_size, share=2.5 / p.steps)),
                    steps=p.steps,
                ).x
            logits = search.oracle.logits(x, rows)
            return SearchResult(x, margin(logits, rows).to(x.dtype), search.oracle.is_adversarial(logits, rows))

        return fixed_budget(target, batch, threat, attempt)


def _nearest_to_mean(features: Tensor, of_class: Tensor) -> Tensor:
    """(D,) of the sample of a class that is nearest to the class's mean; without any, the mean of all."""
    if not bool(of_class.any()):
        return features.mean(0)
    own = features[of_class]
    return own[squared_distance(own, own.mean(0, keepdim=True)).argmin()]


def _others(labels: Tensor, classes: int, rng: SampleRng) -> Tensor:
    """(B,) another class than the label, at random."""
    return (labels + 1 + rng.fork("class").integers((), classes - 1)) % classes
