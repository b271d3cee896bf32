"""SFD: score forgetting distillation (Chen et al. 2025, section 3). What comes out draws in one step, and has forgotten.

A generator G and a score psi of what G draws are trained side by side against the original phi, f being the clean picture that each
sees in a noised one, x_g = G(noise, c) and x_t its noised form:

    psi:  w_c ||f_psi(x_t | c) - x_g||^2
    G:    w_c (1 / |x_g - f_phi|) <d, (f_psi(x_t | c) - x_g) + (1 - alpha) d>,   d = f_phi(x_t | c*) - f_psi(x_t | c)

the second being SiD's loss. c* is c itself for what is kept, and another concept's text for what is erased; w_c is 1 and ``forget``.
phi is guided, as in SiD-LSG: without guidance text-to-image models draw worse than asked. The paper starts Stable Diffusion's G at noise
level 625 of 1,000; here it is the last one, so that the result is the target's own drawing in a single step.

Not as in the authors' script for Stable Diffusion: alpha 1.2, ``forget`` 0.01 and the rates are those of their class-conditional DDPM
(there all weights are 1, lr 3e-6 and 1e-6, Adam's beta1 0, guidance 4.5 for generator and score too); it starts from the target
and not from a distilled generator, and G and psi take one step together, on the same samples.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from robustkd.contracts import Defense, FitContext, Modality, Prompts
from robustkd.defenses.diffusion.erasing import TuningParams, begin
from robustkd.defenses.training.steps import train_steps
from robustkd.lazy import F, torch
from robustkd.targets import frozen
from robustkd.targets.text_encoders import Conditioning
from robustkd.targets.text_to_image import TextToImageTarget, scheduler_class

if TYPE_CHECKING:
    from torch import Tensor


class SFDParams(TuningParams):
    alpha: float = Field(1.2, ge=0, description="of SiD's loss")
    forget: float = Field(0.01, gt=0, description="weight of an erased text; a kept one has 1")
    guidance: float = Field(1.5, ge=1, description="of the original")
    lowest: float = Field(
        0.038, ge=0, lt=1, description="the least noise at which pictures are compared, as a share of all levels"
    )
    highest: float = Field(0.712, gt=0, le=1, description="the most")


class SFD(Defense):
    """Distil the model into one that draws in one step, and an erased concept into another one."""

    Params = SFDParams
    modalities: ClassVar[tuple[Modality, ...]] = ("text-to-image",)
    source = (
        "Chen et al., Score forgetting distillation, ICLR 2025, arXiv:2409.11219; SiD: Zhou et al., ICML 2024, arXiv:2404.04057"
    )

    def fit(self, context: FitContext[Prompts]) -> TextToImageTarget:
        """Train the generator and its score.

        Raises:
            UsageError, DataError: see ``erasing.begin``.
        """
        p, erasure = self.params, begin(context, self.params)
        original = erasure.original
        generator, score = in_one_step(erasure.target), copy.deepcopy(original)

        def loss(draws: torch.Generator) -> Tensor:
            erased, kept = erasure.forget.draw(p.batch_size, draws), erasure.retain.draw(p.batch_size, draws)
            ids = original.tokenize([*erased, *kept])
            with torch.no_grad():
                asked = original.encode(ids)
                meant = original.encode(original.tokenize([*erasure.retain.draw(p.batch_size, draws), *kept]))
            weights = torch.tensor([p.forget] * len(erased) + [1.0] * len(kept)).to(original.device)
            noise, again = (torch.randn((len(ids), *original.latent_shape), generator=draws).to(asked.tokens) for _ in range(2))
            last = torch.full((len(ids),), original.timesteps - 1, device=original.device)
            drawn = generator.predict_x0(noise, last, asked)
            low, high = round(p.lowest * original.timesteps), max(1, round(p.highest * original.timesteps))
            t = torch.randint(low, high, (len(ids),), generator=draws).to(original.device)
            fitted = F.mse_loss(
                score.predict_x0(original.add_noise(drawn.detach(), again, t), t, asked), drawn.detach(), reduction="none"
            )
            noised = original.add_noise(drawn, again, t)
            with frozen(score.module), frozen(original.module):
                fake = score.predict_x0(noised, t, asked)
                real = guided(original, noised, t, meant, p.guidance)
            total = weights * (fitted.mean((1, 2, 3)) + identity_loss(drawn, real, fake, p.alpha))
            return total.sum() / weights.sum()

        parameters = {f"generator/{name}": weight for name, weight in generator.unet.named_parameters()}
        parameters |= {f"score/{name}": weight for name, weight in score.unet.named_parameters()}
        train_steps(context, "distil", parameters, loss, p)
        return generator


def identity_loss(drawn: Tensor, real: Tensor, fake: Tensor, alpha: float) -> Tensor:
    """SiD's loss of each of B drawings, (B,), from what the original and the score see in their noised forms, (B, C', H', W')."""
    difference = real - fake
    scale = (drawn - real).abs().mean((1, 2, 3)).detach().clamp_min(1e-5)
    return (difference * ((fake - drawn) + (1 - alpha) * difference)).mean((1, 2, 3)) / scale


def guided(target: TextToImageTarget, z: Tensor, t: Tensor, hidden: Conditioning, guidance: float) -> Tensor:
    """The clean latents that the target sees under guidance."""
    given = target.predict_x0(z, t, hidden)
    if guidance == 1:
        return given
    with torch.no_grad():
        empty = target.unconditional().expand(len(hidden))
    without = target.predict_x0(z, t, empty)
    return without + guidance * (given - without)


def in_one_step(target: TextToImageTarget) -> TextToImageTarget:
    """The same networks, which draw in one step from the last noise level."""
    scheduler = scheduler_class("DDIMScheduler").from_config(
        target.scheduler.config, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True
    )
    return target.drawing_by(scheduler, guidance=1.0, steps=1)
