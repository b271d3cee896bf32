"""AdvEncoder's patch: one patch for all images, made on an encoder without labels, head or task.

The loss is that of ``adv-encoder``, of images with the patch at a random place each (or the given one).

    p_{t+1} = clip( p_t - size_t * sign( grad_p of the loss over a minibatch ) ),    p in the pixel range

Good for an attacker who prints a patch and knows which public encoder is used, and nothing else. ``epochs: 0`` leaves the random patch that
it starts from: the control.

From the authors: the loss, patches of 3 % of the image, minibatches of 256, 20 epochs. From us: the pixels are moved themselves, in the
place of a generator; a place of its own for each image, where theirs has one for all; the steps are those of ``universal-patch``.

Source: Zhou et al.: Downstream-agnostic adversarial examples (ICCV 2023); the authors' code CGCL-codes/AdvEncoder, gan_pat_attack.py.
"""

from __future__ import annotations

from copy import copy
from typing import Self

from pydantic import Field
from typing_extensions import override

from robustkd.attacks.image.engine.ball import Ball
from robustkd.attacks.image.engine.fitting import epochs, training_batch
from robustkd.attacks.image.engine.oracle import frozen, gradient_of
from robustkd.attacks.image.gradient.adv_encoder import EncoderLossParams, encoder_loss
from robustkd.attacks.image.patch.placement import pasted, random_content, random_places, sides_of
from robustkd.attacks.image.patch.universal_patch import UniversalPatch
from robustkd.contracts import Arrays, Target, ThreatModel
from robustkd.contracts.attack import LossFamily
from robustkd.contracts.random import SampleRng
from robustkd.contracts.region import Patch
from robustkd.lazy import torch
from robustkd.targets.encoder import EncoderTarget


class AdvEncoderPatchParams(EncoderLossParams):
    """How many images the patch is made on, the steps, the weights of the loss, and how many places are tried."""

    samples: int = Field(1000, ge=2, description="training images that it is made on, at most; their labels are not looked at")
    epochs: int = Field(20, ge=0, description="passes over them; with 0 the patch is random, the control")
    batch_size: int = Field(256, ge=2, description="images in each step")
    step_size: float = Field(0.1, gt=0, description="of the first step, in pixel units")
    places: int = Field(5, ge=1, description="random places that are tried on each sample, where the place is the attacker's")


class AdvEncoderPatch(UniversalPatch):
    """One patch for all images that leaves no image's features as they were.

    The counts are those of using it: one forward pass a place (and one for the clean image). Making it takes ``epochs`` forward and
    backward passes on each of the training images, and one more forward pass.
    """

    Params = AdvEncoderPatchParams
    source = "Zhou et al. 2023, arXiv:2307.12280"

    @property
    @override
    def loss_family(self) -> LossFamily:
        return "none"

    @override
    def fit(self, target: Target, data: Arrays, threat: ThreatModel, rng: SampleRng) -> Self:
        """A copy of this attack that holds the patch, (C, h, w), made on the images of ``data``."""
        p = self.params
        batch, rng = training_batch(data, p.samples, rng)
        images = batch.inputs
        if isinstance(threat.where, Patch) and isinstance(threat.where.place, tuple):
            batch = batch.placed(threat, rng.seed)
        ball = Ball.around(images, threat.eps, threat.norm, target.bounds, batch.movable)
        sides = sides_of(threat, images.shape[1:])
        one = SampleRng(rng.seed, rng.index.new_zeros(1), f"{rng.stream}/content")
        content = random_content(images[:1], sides, target.bounds, one)
        low, high = (torch.as_tensor(bound).flatten()[0].to(content) for bound in target.bounds)
        steps, encoder = epochs(p.epochs, p.batch_size, rng), EncoderTarget(target)
        with frozen(target.module):
            for t, rows in enumerate(steps):
                near = ball.select(rows)
                places = random_places(near, sides, rng.fork(f"place/{t}").select(rows))
                content = content.detach().requires_grad_()
                with torch.no_grad():
                    clean = encoder(near.centre)
                with torch.enable_grad():
                    changed = near.project(pasted(near.centre, content.expand(len(rows), -1, -1, -1), places))
                    gradient = gradient_of(encoder_loss(encoder, near.centre, changed, clean, p), content)
                content = (content.detach() - p.step_size * (1 - t / len(steps)) * gradient.sign()).clamp(low, high)
        fitted = copy(self)
        fitted.content = content.detach()[0]
        return fitted
