"""ESD: erased stable diffusion (Gandikota et al. 2023, equation 7).

    min_theta  E_{z_t, t, c}  ||eps_theta(z_t | c) - [eps_0(z_t) - eta (eps_0(z_t | c) - eps_0(z_t))]||^2

with z_t drawn by the model being tuned. The paper tunes the cross-attention (for a style) or the UNet's other layers (for an object)
and has no second term; ``retain`` adds

    + retain  E  ||eps_theta(z_t | c') - eps_0(z_t | c')||^2    over captions c' of what is not erased

which tuning the text encoder cannot do without. A model that predicts velocities is compared in these, in which the equation is the
same: at high noise, where the drawing is decided, they tell more than noises do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.contracts import FitContext, Prompts
from robustkd.defenses.diffusion.erasing import Erasure, Layers, TuningParams, begin, partially_denoised, tuned
from robustkd.defenses.diffusion.text_to_image_defense import TextToImageDefense
from robustkd.defenses.training.steps import train_steps
from robustkd.lazy import F, torch
from robustkd.targets.frozen import without_gradients
from robustkd.targets.text_to_image import TextToImageTarget

if TYPE_CHECKING:
    from torch import Tensor


class ESDParams(TuningParams):
    layers: Layers = Field("cross-attention", description="what is tuned")
    eta: float = Field(1.0, ge=0, description="strength of the negative guidance")
    retain: float = Field(0.0, ge=0, description="weight of staying with the original on other captions; the paper has none")
    start_guidance: float = Field(3.0, ge=1, description="guidance of the drawings on which the models are compared")


class ESD(TextToImageDefense):
    """Predict, for an erased concept, the noise that leads away from it."""

    Params = ESDParams
    source = "Gandikota et al., Erasing concepts from diffusion models, ICCV 2023, arXiv:2303.07345"

    def fit(self, context: FitContext[Prompts]) -> TextToImageTarget:
        """Tune a copy of the base.

        Raises:
            UsageError, DataError: see ``erasing.begin``.
        """
        p, erasure = self.params, begin(context, self.params)

        def loss(generator: torch.Generator) -> Tensor:
            ids = erasure.target.tokenize(erasure.forget.draw(p.batch_size, generator))
            hidden = erasure.target.encode(ids)
            z, t = partially_denoised(erasure.target, hidden, p.start_guidance, generator)
            wanted = negative_guidance_target(erasure.original, z, t, ids, p.eta)
            forgetting = F.mse_loss(erasure.target.unet_output(z, t, hidden).float(), wanted)
            return forgetting + (p.retain * retaining(erasure, p, generator) if p.retain else 0)

        train_steps(context, "erase", tuned(erasure.target, p.layers), loss, p)
        return erasure.target


@without_gradients()
def negative_guidance_target(original: TextToImageTarget, z: Tensor, t: Tensor, ids: Tensor, eta: float) -> Tensor:
    """eps_0(z_t) - eta (eps_0(z_t | c) - eps_0(z_t)), float32 of z's shape, for the (B, T) prompts ``ids``."""
    hidden = original.encode(torch.cat([original.tokenize([""]).expand_as(ids), ids]))
    if original.second is not None:
        hidden = original.unconditional().expand(len(ids)).then(hidden[len(ids) :])
    without, given = original.unet_output(torch.cat([z, z]), torch.cat([t, t]), hidden).float().chunk(2)
    return without - eta * (given - without)


def retaining(erasure: Erasure, params: ESDParams, generator: torch.Generator) -> Tensor:
    """||eps_theta(z_t | c') - eps_0(z_t | c')||^2 on the original's drawings of other captions."""
    original = erasure.original
    ids = original.tokenize(erasure.retain.draw(params.batch_size, generator))
    with torch.no_grad():
        hidden = original.encode(ids)
        z, t = partially_denoised(original, hidden, params.start_guidance, generator)
        wanted = original.unet_output(z, t, hidden).float()
    return F.mse_loss(erasure.target.unet_output(z, t, erasure.target.encode(ids)).float(), wanted)
