"""iCT: improved consistency training, a generator of one step without any teacher (Song and Dhariwal 2024, table 1).

    x_i = x + sigma_i z,  x_{i+1} = x + sigma_{i+1} z   with the same z, of a picture x of the data

    1 / (sigma_{i+1} - sigma_i) ( sqrt(||f(x_{i+1}) - sg(f(x_i))||^2 + c^2) - c ),     c = .00054 sqrt(d)
    f(x, sigma) = x / (1 + (sigma - sigma_min)^2) - (sigma - sigma_min) / sqrt(1 + sigma^2) F(x / sqrt(1 + sigma^2), t(sigma) | caption)

sigma_1, .., sigma_N lie between sigma_min and sigma_max, evenly in sigma^(1/7); N doubles on the way from ``first_levels`` to
``last_levels``; i is drawn with the probability of [log sigma_i, log sigma_{i+1}] under N(-1.1, 2.0^2). The target f(x_i) is the
network itself, without a moving average.

It is the control of all distillations: what is drawn in one step without a teacher, here from the data's own pictures of what may
have been erased elsewhere. ``base`` gives the shape of the UNet, whose weights are drawn afresh, and the text encoder as it is.

As read in a third party's code (Kinyugo/consistency_models): the loss, its weights, c, the levels and their schedule. Theirs are 400,000
steps of RAdam at 1e-4 with batches of 1,024 and dropout; ours are AdamW, the rates, and the scale 1 of the data in f (theirs is 0.5),
under which F is a velocity: so the model is drawn with as any other. t(sigma) is the model's own noise level of that sigma, the
last one for sigma_max.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from robustkd.contracts import FitContext, Prompts
from robustkd.defenses.diffusion.captioned_pictures import CaptionedPictures
from robustkd.defenses.diffusion.one_step.drawing import in_one_step, normal
from robustkd.defenses.diffusion.one_step.score_distillation import DistillationParams
from robustkd.defenses.diffusion.text_to_image_defense import TextToImageDefense
from robustkd.defenses.training.networks import seeded_init
from robustkd.defenses.training.steps import StepCounter, train_steps
from robustkd.lazy import torch
from robustkd.targets.text_encoders import Conditioning
from robustkd.targets.text_to_image import TextToImageTarget

if TYPE_CHECKING:
    from torch import Tensor

_RHO, _MEAN, _STD, _HUBER = 7.0, -1.1, 2.0, 0.00054


class ICTParams(DistillationParams):
    lr: float = Field(1e-3, gt=0, description="learning rate")
    sigma_min: float = Field(0.002, gt=0, description="the least noise")
    sigma_max: float = Field(80.0, gt=0, description="the most")
    first_levels: int = Field(10, ge=2, description="noise levels at the start")
    last_levels: int = Field(1280, ge=2, description="and at the end, doubled on the way")

    @model_validator(mode="after")
    def _in_order(self) -> ICTParams:
        if self.sigma_min >= self.sigma_max or self.first_levels > self.last_levels:
            raise ValueError("sigma_min is below sigma_max, and first_levels is at most last_levels")
        return self


class ICT(TextToImageDefense):
    """A generator of one step by consistency training on the data, without a teacher."""

    Params = ICTParams
    source = "Song and Dhariwal, Improved techniques for training consistency models, ICLR 2024, arXiv:2310.14189"

    def fit(self, context: FitContext[Prompts]) -> TextToImageTarget:
        """Train a fresh UNet.

        Raises:
            UsageError: the base draws nothing.
            DataError: the training captions have no images.
        """
        p, counter = self.params, StepCounter()
        base = context.target(p.base, TextToImageTarget).to(context.device)
        model = _fresh(context, base)
        pictures = CaptionedPictures.of(context.train, context.train["prompt"])

        def loss(draws: torch.Generator) -> Tensor:
            x, texts = pictures.latents(model, p.batch_size, draws)
            with torch.no_grad():
                asked = model.encode(model.tokenize(texts))
            sigmas = karras_levels(p.sigma_min, p.sigma_max, levels_in(counter.next(), p))
            place = torch.multinomial(level_weights(sigmas), p.batch_size, replacement=True, generator=draws)
            less, more = (sigmas[part].float().to(model.device).reshape(-1, 1, 1, 1) for part in (place, place + 1))
            z = normal(model, p.batch_size, draws)
            with torch.no_grad():
                wanted = consistency_function(model, x + less * z, less, asked, p)
            found = consistency_function(model, x + more * z, more, asked, p)
            return (pseudo_huber(found - wanted, _HUBER) / (more - less).flatten()).mean()

        train_steps(context, "train", dict(model.unet.named_parameters()), loss, p, memory=counter)
        return model


def _fresh(context: FitContext[Prompts], base: TextToImageTarget) -> TextToImageTarget:
    """The base's UNet with weights drawn afresh, which is said to predict velocities, beside the base's text encoder."""
    with seeded_init(context, "student"):
        model = TextToImageTarget.from_card(base.card()).to(context.device)
    for name, network in base.module.items():
        if name != "unet":
            model.module[name].load_state_dict(network.state_dict())
    model.scheduler.register_to_config(prediction_type="v_prediction")
    model.module.eval()
    return in_one_step(model)


def levels_in(step: int, p: ICTParams) -> int:
    """N in a step: ``first_levels`` doubled every so many steps, so that ``last_levels`` is reached for the last part of them."""
    doublings = int(math.log2(p.last_levels // p.first_levels)) + 1
    each = max(1, p.steps // doublings)
    return min(p.first_levels * 2 ** (step // each), p.last_levels) + 1


def karras_levels(least: float, most: float, count: int) -> Tensor:
    """(count,) float64 on the CPU, rising from ``least`` to ``most`` evenly in the 7th root (Karras et al. 2022, equation 5)."""
    share = torch.linspace(0, 1, count, dtype=torch.float64)
    found: Tensor = (least ** (1 / _RHO) + share * (most ** (1 / _RHO) - least ** (1 / _RHO))) ** _RHO
    return found


def level_weights(sigmas: Tensor) -> Tensor:
    """(N - 1,) the probabilities of the pairs of neighbours among (N,) levels."""
    cumulative = torch.erf((sigmas.log() - _MEAN) / (math.sqrt(2) * _STD))
    weights = cumulative[1:] - cumulative[:-1]
    return weights / weights.sum()


def pseudo_huber(difference: Tensor, scale: float) -> Tensor:
    """(B,) sqrt(||difference||^2 + c^2) - c of (B, ..) differences, with c = ``scale`` sqrt(d)."""
    flat = difference.flatten(1)
    c = scale * math.sqrt(flat.shape[1])
    return (flat.square().sum(1) + c**2).sqrt() - c


def consistency_function(model: TextToImageTarget, x: Tensor, sigma: Tensor, asked: Conditioning, p: ICTParams) -> Tensor:
    """(B, C', H', W') f(x, sigma), at (B, 1, 1, 1) sigmas; x itself at sigma_min."""
    shifted = sigma - p.sigma_min
    said = model.unet_output(x / (1 + sigma.square()).sqrt(), level_of(model, sigma.flatten(), p.sigma_max), asked)
    return x / (1 + shifted.square()) - shifted / (1 + sigma.square()).sqrt() * said


def level_of(model: TextToImageTarget, sigma: Tensor, most: float) -> Tensor:
    """(B,) float32, the model's noise level with that sigma, between two levels by the logarithm; the last one for ``most``."""
    alphas: Any = model.scheduler.alphas_cumprod.to(sigma.device)
    own = (((1 - alphas) / alphas).sqrt()).log()
    own[-1] = math.log(most)
    own = torch.cummax(own.clamp_max(math.log(most)), 0).values
    wanted = sigma.log()
    above = torch.searchsorted(own, wanted).clamp(1, len(own) - 1)
    share = (wanted - own[above - 1]) / (own[above] - own[above - 1]).clamp_min(1e-12)
    return (above - 1 + share.clamp(0, 1)).float()
