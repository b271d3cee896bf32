"""SCott: consistency distillation along a stochastic way of the teacher (Liu et al. 2024).

    z_s by ``substeps`` steps from t to s, each of which adds fresh noise (DDIM with eta > 0, an SDE solver);  all else as in
    ``consistency-distillation``, which is this with ``eta: 0`` and one substep: the control

Of the paper the abstract was read: the SDE solver and its noise strength. Left out, as reduced: its discriminator, its moving average and
students of several steps; the numbers are ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.defenses.diffusion.one_step.consistency.distillation import ConsistencyDistillation, ConsistencyParams
from robustkd.defenses.diffusion.one_step.drawing import ddim, guided, normal
from robustkd.lazy import torch
from robustkd.targets.text_encoders import Conditioning
from robustkd.targets.text_to_image import TextToImageTarget

if TYPE_CHECKING:
    from torch import Tensor


class SCottParams(ConsistencyParams):
    eta: float = Field(0.5, ge=0, le=1, description="how much of each step's noise is fresh; 0: none")
    substeps: int = Field(2, ge=1, description="steps of the teacher from one level to the next")


class SCott(ConsistencyDistillation):
    """Consistency distillation with an SDE solver."""

    Params = SCottParams
    source = "Liu et al., SCott: accelerating diffusion models with stochastic consistency distillation, 2024, arXiv:2403.01505"

    def teacher_step(
        self, teacher: TextToImageTarget, z: Tensor, t: Tensor, s: Tensor, asked: Conditioning, draws: torch.Generator
    ) -> Tensor:
        """The way from z_t to z_s through levels between them, as far as there are any, with fresh noise at each."""
        p, here = self.params, t
        for number in range(1, p.substeps + 1):
            # Levels are whole numbers: where t is next to s there is none between, and one step is the whole way.
            there = t + torch.div((s - t) * number, p.substeps, rounding_mode="floor")
            x0 = guided(teacher, z, here.clamp_min(0), asked, p.guidance)
            step = ddim(teacher, z, x0, here.clamp_min(0), there, eta=p.eta, noise=normal(teacher, len(z), draws))
            z, here = torch.where((here == there).reshape(-1, 1, 1, 1), z, step), there
        return z
