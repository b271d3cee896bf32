"""DMD2: distribution matching with a score that learns faster than the generator (Yin et al. 2024, section 4.2).

    d = (f_psi(x_t | c) - f_phi(x_t | c)) / mean |x_g - f_phi|,    f the clean picture that each sees in x_t
    psi: the loss of diffusion models, ``critic_steps`` times for each step of G ("two time-scale update rule")

With ``critic_steps: 1`` the rule is taken out: that is the control. phi is guided, psi isn't. As read in the authors' code: d, its
scale for each sample, 5 (ImageNet) or 10 (Stable Diffusion) steps of psi, t in [.02, .98] of all levels. Left out, as reduced: the
discriminator on real pictures and students of several steps. Theirs are the guidance 1.75 (SD 1.5) and 8 (SDXL); ours are all rates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.defenses.diffusion.one_step.drawing import guided
from robustkd.defenses.diffusion.one_step.score_distillation import (
    DirectedDistillation,
    Models,
    Noised,
    ScoreDistillationParams,
)
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class DMD2Params(ScoreDistillationParams):
    critic_steps: int = Field(5, ge=1, description="updates of the score before each of the generator")
    guidance: float = Field(1.75, ge=1, description="of the teacher")


class DMD2(DirectedDistillation):
    """Distil the model into a generator of one step, whose pictures are to be distributed as the model's."""

    Params = DMD2Params
    source = "Yin et al., Improved distribution matching distillation for fast image synthesis, NeurIPS 2024, arXiv:2405.14867"

    def direction(self, models: Models, seen: Noised, draws: torch.Generator) -> Tensor:
        """(f_psi - f_phi) / mean |x_g - f_phi|, for each picture."""
        real = guided(models.teacher, seen.z, seen.t, seen.captions.meant, self.params.guidance)
        fake = models.score.predict_x0(seen.z, seen.t, seen.captions.asked)
        return matching_direction(seen.drawn, real, fake)


def matching_direction(drawn: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """(B, C', H', W') the difference of what psi and phi see, each over the distance of the picture from what phi sees."""
    return (fake - real) / (drawn - real).abs().mean((1, 2, 3), keepdim=True).clamp_min(1e-5)
