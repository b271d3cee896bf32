"""BOOT: a generator of one step that learns the teacher's way from noise to picture by itself (Gu et al. 2023, section 3).

    y_t = (x_t - sqrt(1 - a_t) noise) / sqrt(a_t)        what is there of the picture at level t: nothing at the last, all at the first
    y_s = (1 - r) f_phi(x_t | c) + r y_t,    r = sqrt(1 - a_s) sqrt(a_t) / (sqrt(a_s) sqrt(1 - a_t))          a DDIM step from t to s < t
    G   ||G(noise, s, c) - sg(y_s)||^2 + boundary ||G(noise, T, c) - f_phi(noise | c)||^2,    x_t from y_t = sg(G(noise, t, c))

G is asked with the noise alone and the level; what is deployed is G(noise, 0, c). No picture is seen, of the data or of the teacher's, and
there is no score. G is told T - t where the teacher is told t: so that G(noise, 0, c) is what the target draws in a single step, and begins
as what the teacher sees in noise.

``stride`` 0 leaves the steps out, and what is left is the regression on what the teacher sees in noise: the control. Of the paper the
abstract was read, and its equations are as they are cited by others; ours are the levels (evenly drawn, ``stride`` apart), the weights
(equal), the rates.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.contracts import FitContext, Prompts
from robustkd.defenses.diffusion.one_step.drawing import guided, in_one_step, kept, normal
from robustkd.defenses.diffusion.one_step.score_distillation import DistillationParams, captions_of
from robustkd.defenses.diffusion.text_to_image_defense import TextToImageDefense
from robustkd.defenses.training.steps import train_steps
from robustkd.lazy import torch
from robustkd.targets.text_encoders import Conditioning
from robustkd.targets.text_to_image import TextToImageTarget

if TYPE_CHECKING:
    from torch import Tensor


class BOOTParams(DistillationParams):
    stride: float = Field(0.1, ge=0, lt=1, description="length of a step, as a share of all levels; 0: the control")
    guidance: float = Field(3.0, ge=1, description="of the teacher")
    boundary: float = Field(1.0, gt=0, description="weight of the regression at the last level")


class BOOT(TextToImageDefense):
    """Distil the model into a generator of one step by bootstrapping, without data and without a score."""

    Params = BOOTParams
    source = "Gu et al., BOOT: data-free distillation of denoising diffusion models with bootstrapping, 2023, arXiv:2306.05544"

    def fit(self, context: FitContext[Prompts]) -> TextToImageTarget:
        """Train the generator.

        Raises:
            UsageError: the base draws nothing.
        """
        p = self.params
        teacher = context.target(p.base, TextToImageTarget).to(context.device)
        generator, captions = in_one_step(copy.deepcopy(teacher)), captions_of(context, teacher, p.batch_size)
        last, stride = teacher.timesteps - 1, max(1, round(p.stride * teacher.timesteps)) if p.stride else 0

        def loss(draws: torch.Generator) -> Tensor:
            asked = captions(draws).asked
            noise = normal(teacher, p.batch_size, draws)
            end = torch.full((p.batch_size,), last, device=teacher.device)
            with torch.no_grad():
                first = guided(teacher, noise, end, asked, p.guidance)
            total = p.boundary * (signal(generator, noise, end, asked) - first).square().mean()
            if not stride:
                return total + (signal(generator, noise, end * 0, asked) - first).square().mean()
            t = torch.randint(stride, last + 1, (p.batch_size,), generator=draws).to(teacher.device)
            with torch.no_grad():
                y = signal(generator, noise, t, asked)
                x0 = guided(teacher, teacher.add_noise(y, noise, t), t, asked, p.guidance)
                wanted = signal_step(teacher, y, x0, t, t - stride)
            return total + (signal(generator, noise, t - stride, asked) - wanted).square().mean()

        train_steps(context, "distil", dict(generator.unet.named_parameters()), loss, p)
        return generator


def signal(generator: TextToImageTarget, noise: Tensor, t: Tensor, hidden: Conditioning) -> Tensor:
    """(B, C', H', W') G(noise, t, c), at (B,) levels."""
    last = torch.full_like(t, generator.timesteps - 1)
    return generator.output_as_x0(generator.unet_output(noise, last - t, hidden), noise, last)


def signal_step(target: TextToImageTarget, y: Tensor, x0: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """(B, C', H', W') y_s of y_t and the clean latents that are seen at t."""
    a_t, a_s = kept(target, t), kept(target, s)
    ratio = ((1 - a_s) * a_t / (a_s * (1 - a_t))).sqrt()
    return (1 - ratio) * x0 + ratio * y
