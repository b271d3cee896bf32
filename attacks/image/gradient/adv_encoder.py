"""AdvEncoder: one perturbation for all images, made on an encoder without labels, head or task.

    G(z) = delta, brought into ||delta|| <= eps; z fixed rows of noise
    min_G  alpha * ( -InfoNCE(f(x + delta), f(x)) )  +  MSE(x + delta, x)  -  MSE(HF(x + delta), HF(x))

InfoNCE tells the perturbed image from the other images of the minibatch by its features, so it is large where the features no longer say
which image this was; HF keeps the high frequencies, which encoders of this kind lean on, and the middle term keeps the rest small.
``generator: false`` moves delta itself, by steps along the steepest direction, in the place of a network that makes it.

Good for an attacker who knows which public encoder a service uses, and nothing else of it. It is far weaker than an attack on each image.
``epochs: 0`` is the control: a random perturbation of the same size for all images.

From the authors: the losses, alpha 5, radius 8, noise of 100 numbers, Adam at 2e-4 with betas 0.5 and 0.999, minibatches of 256, 20 epochs,
eps 10/255; the temperature 0.1, which their code computes with whatever ``--temperature`` says; as many rows of noise as a minibatch has
images, which the generator mixes into one perturbation far larger than the budget, before it is cut. From us: a smaller generator, and the
clamp to the pixel range, which theirs makes at test time alone.

Source: Zhou et al.: Downstream-agnostic adversarial examples (ICCV 2023), equations 4 to 8; the authors' code CGCL-codes/AdvEncoder,
gan_per_attack.py, utils/fr_util.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from typing import TYPE_CHECKING, Self

from pydantic import Field
from typing_extensions import override

from robustkd.attacks.image.engine.ball import Ball
from robustkd.attacks.image.engine.feature_losses import high_frequencies, info_nce
from robustkd.attacks.image.engine.fitting import epochs, training_batch
from robustkd.attacks.image.engine.oracle import frozen, gradient_of
from robustkd.attacks.image.gradient.feature_pgd import random_corner
from robustkd.attacks.image.gradient.universal import Universal
from robustkd.contracts import Arrays, Params, Target, ThreatModel
from robustkd.contracts.random import SampleRng, preserved_rng, seed_torch
from robustkd.lazy import F, torch
from robustkd.targets.encoder import EncoderTarget
from robustkd.targets.training import adam, fit

if TYPE_CHECKING:
    from torch import Tensor


class EncoderLossParams(Params):
    """The weights of the loss."""

    alpha: float = Field(5.0, ge=0, description="weight of InfoNCE")
    temperature: float = Field(0.1, gt=0, description="of InfoNCE")
    radius: float = Field(8.0, ge=0, description="below which frequencies do not count as high, in waves over the image")


class AdvEncoderParams(EncoderLossParams):
    """How many images the perturbation is made on, how, and the weights of its loss."""

    samples: int = Field(1000, ge=2, description="training images that it is made on, at most; their labels are not looked at")
    epochs: int = Field(20, ge=0, description="passes over them; with 0 the perturbation is random, the control")
    batch_size: int = Field(256, ge=2, description="images in each step")
    generator: bool = Field(
        True, description="whether a network makes it, as the paper's; else its pixels are moved themselves"
    )
    lr: float = Field(2e-4, gt=0, description="of the generator's Adam")
    width: int = Field(32, ge=1, description="channels of the generator")
    step_size: float | None = Field(
        None, gt=0, description="without a generator, of the first step, in pixel units; default eps / 4"
    )


class AdvEncoder(Universal):
    """One perturbation for all images that leaves no image's features as they were.

    The counts are those of using it: one forward pass a sample (and one for the clean image). Making it takes ``epochs`` forward and
    backward passes on each of the training images, and one more forward pass.
    """

    Params = AdvEncoderParams
    version = "2"
    inputs = "images"
    source = "Zhou et al. 2023, arXiv:2307.12280"
    loss_family = "none"

    @override
    def fit(self, target: Target, data: Arrays, threat: ThreatModel, rng: SampleRng) -> Self:
        """A copy of this attack that holds the perturbation, (C, H, W), made on the images of ``data``."""
        p = self.params
        low, high = bounds = target.bounds
        batch, rng = training_batch(data, p.samples, rng)
        images = batch.inputs
        width = torch.as_tensor(high - low).to(images)
        ball = Ball.around(torch.zeros_like(images[:1]), threat.eps, threat.norm, (-width, width))
        one = SampleRng(rng.seed, rng.index.new_zeros(1), f"{rng.stream}/start")
        steps = epochs(p.epochs, p.batch_size, rng)
        with frozen(target.module):
            if not steps:
                delta = random_corner(ball, one)
            else:
                encoder = EncoderTarget(target)
                features = _features(encoder, images)

                def loss(rows: Tensor, delta: Tensor) -> Tensor:
                    x = images[rows]
                    return encoder_loss(encoder, x, (x + delta).clamp(*bounds), features[rows], p)

                make = self._generated if p.generator else self._moved
                delta = make(loss, ball, steps, one)
        fitted = copy(self)
        fitted.perturbation = delta.detach()[0]
        return fitted

    def _moved(self, loss: Callable[[Tensor, Tensor], Tensor], ball: Ball, steps: list[Tensor], rng: SampleRng) -> Tensor:
        """(1, C, H, W) after a step on each minibatch, from a random point, since at 0 the features have no gradient."""
        size = self.params.step_size if self.params.step_size is not None else float(ball.eps[0]) / 4
        delta = ball.random_point(rng)
        for t, rows in enumerate(steps):
            delta = delta.detach().requires_grad_()
            with torch.enable_grad():
                gradient = gradient_of(loss(rows, delta), delta)
            at = delta.detach()
            delta = ball.project(at - size * (1 - t / len(steps)) * ball.steepest(gradient, at))
        return delta

    def _generated(self, loss: Callable[[Tensor, Tensor], Tensor], ball: Ball, steps: list[Tensor], rng: SampleRng) -> Tensor:
        """(1, C, H, W) from a generator that took a step on each minibatch."""
        from robustkd.attacks.image.engine.generator import NOISE, Generator  # late: it imports torch

        p, device = self.params, ball.centre.device
        with preserved_rng(device):
            seed_torch(rng.seed)
            network = Generator(tuple(ball.centre.shape[1:]), p.width, p.batch_size).to(ball.centre)
        z = rng.normal((p.batch_size, NOISE), ball.centre.dtype)[0]

        def made() -> Tensor:
            return ball.project(network(z))

        def losses() -> Iterator[Tensor]:
            for rows in steps:
                yield loss(rows, made())

        with torch.enable_grad():
            fit(adam(network.parameters(), p.lr, betas=(0.5, 0.999)), losses(), lambda step: p.lr)
        return made().detach()


def encoder_loss(encoder: EncoderTarget, x: Tensor, changed: Tensor, features: Tensor, params: EncoderLossParams) -> Tensor:
    """What is minimised: a scalar, of (B, C, H, W) images, the same changed, and the (B, D) unit features of the former."""
    apart = info_nce(encoder(changed), features, params.temperature).mean()
    smooth = F.mse_loss(changed, x)
    high = F.mse_loss(high_frequencies(changed, params.radius), high_frequencies(x, params.radius))
    return -params.alpha * apart + smooth - high


def _features(encoder: EncoderTarget, images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([encoder(part) for part in images.split(256)])
