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

from typing import TYPE_CHECKING

from pydantic import Field
from typing_extensions import override

from robustkd.attacks.image.engine.ball import Ball
from robustkd.attacks.image.engine.oracle import gradient_of
from robustkd.attacks.image.gradient.adv_encoder import EncoderLossParams, encoder_loss
from robustkd.attacks.image.patch.placement import pasted
from robustkd.attacks.image.patch.universal_patch import PatchGradient, UniversalPatch
from robustkd.contracts import Batch, Target
from robustkd.lazy import torch
from robustkd.targets.encoder import EncoderTarget

if TYPE_CHECKING:
    from torch import Tensor


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
    loss_family = "none"

    @override
    def uphill(self, target: Target, batch: Batch) -> PatchGradient:
        """Down the loss, whose gradient goes through the projection."""
        encoder = EncoderTarget(target)

        def gradient(near: Ball, rows: Tensor, content: Tensor, places: Tensor) -> Tensor:
            content = content.detach().requires_grad_()
            with torch.no_grad():
                clean = encoder(near.centre)
            with torch.enable_grad():
                changed = near.project(pasted(near.centre, content.expand(len(rows), -1, -1, -1), places))
                return -gradient_of(encoder_loss(encoder, near.centre, changed, clean, self.params), content)

        return gradient
