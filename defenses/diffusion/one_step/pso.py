"""PSO as an eraser: a one-step generator learns to prefer a picture of something else to its own of the concept (Miao et al. 2025).

    min_theta  -log sigmoid( beta ( [log p(x+) - log p_0(x+)] - [log p(x-) - log p_0(x-)] ) )
               + retain ||G(noise | c') - G_0(noise | c')||^2
    log p(x) = -mean (x - G(noise | c))^2 / (2 sigma^2)

with p_0 the generator as it was, x- what it drew of an erased text c from this noise, and x+ what it drew of a kept one c' from the
same noise. ``beta: 0`` takes the preference out: that is the control, a training that only stays what it is.

The paper tunes few-step models to people's preferences. As read in the authors' code: the loss, the reference, beta 50, and that the
ratios are clipped there, so that pairs outside of a band have no gradient; here they aren't. Ours are the use for erasing, the
generator of one step, the mean over pixels in log p (of a sum, beta would have to know the size), sigma, ``retain`` and the rates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.contracts import FitContext, Prompts, UsageError
from robustkd.defenses.diffusion.erasing import TuningParams, begin
from robustkd.defenses.diffusion.one_step.drawing import normal, one_step_pictures
from robustkd.defenses.diffusion.text_to_image_defense import TextToImageDefense
from robustkd.defenses.training.steps import train_steps
from robustkd.lazy import F, torch
from robustkd.targets.text_to_image import TextToImageTarget

if TYPE_CHECKING:
    from torch import Tensor


class PSOParams(TuningParams):
    steps: int = Field(100, ge=1, description="updates of the weights")
    batch_size: int = Field(16, ge=1, description="pairs in each step")
    lr: float = Field(3e-4, gt=0, description="learning rate")
    beta: float = Field(50.0, ge=0, description="of the preference; 0: none, the control")
    sigma: float = Field(1.0, gt=0, description="of the likelihood of a picture")
    retain: float = Field(1.0, ge=0, description="weight of drawing what is not erased as before; the paper has none")


class PSO(TextToImageDefense):
    """Pairwise sample optimisation, away from the concept."""

    Params = PSOParams
    source = (
        "Miao et al., Tuning timestep-distilled diffusion model using pairwise sample optimization, ICLR 2025, arXiv:2410.03190"
    )

    def fit(self, context: FitContext[Prompts]) -> TextToImageTarget:
        """Tune a copy of the base.

        Raises:
            UsageError: the base draws in several steps, or nothing.
            DataError: see ``erasing.begin``.
        """
        p, erasure = self.params, begin(context, self.params)
        model, reference = erasure.target, erasure.original
        if reference.steps != 1:
            raise UsageError(
                f"'{p.base}' draws in {reference.steps} steps, and pso tunes generators of one",
                fix="name a defense that distils to one step, such as dmd2, or another eraser, such as esd",
            )

        def loss(draws: torch.Generator) -> Tensor:
            told, others = (
                reference.encode(reference.tokenize(texts.draw(p.batch_size, draws))).detach()
                for texts in (erasure.forget, erasure.retain)
            )
            noise = normal(reference, p.batch_size, draws)
            with torch.no_grad():
                own, instead = (one_step_pictures(reference, noise, asked) for asked in (told, others))
            drawn = one_step_pictures(model, noise, told)
            total = preference_loss(drawn, own, better=instead, worse=own, beta=p.beta, sigma=p.sigma).mean()
            if p.retain:
                total = total + p.retain * F.mse_loss(one_step_pictures(model, noise, others), instead)
            return total

        train_steps(context, "erase", dict(model.unet.named_parameters()), loss, p)
        return model


def preference_loss(drawn: Tensor, reference: Tensor, *, better: Tensor, worse: Tensor, beta: float, sigma: float) -> Tensor:
    """(B,) -log sigmoid of beta times how much more the model than its reference prefers one picture to another.

    Args:
        drawn, reference: (B, C', H', W') what the model and its reference draw.
        better, worse: the two pictures.
    """

    def gain(picture: Tensor) -> Tensor:
        distances = [(picture - mean).square().mean((1, 2, 3)) for mean in (drawn, reference)]
        return (distances[1] - distances[0]) / (2 * sigma**2)

    return -F.logsigmoid(beta * (gain(better) - gain(worse)))
