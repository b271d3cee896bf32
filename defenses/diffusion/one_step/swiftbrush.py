"""SwiftBrush: a generator of one step by variational score distillation (Nguyen and Tran 2024, equation 5).

    d = (1 - a_t) (eps_phi(x_t | c) - eps_psi(x_t | c)),    G: 1/2 ||x_g - sg(x_g - d)||^2,    psi: a_t ||eps_psi(x_t | c) - eps||^2

phi and psi are both guided by ``guidance``. ``score: noise`` puts the noise itself in the place of psi: that is score distillation
sampling (Poole et al. 2023), without the paper's idea, and so its control.

As read in the authors' train_swiftbrush.py: the weight 1 - a_t, both guided by 7.5, t of G in [.02, .98] of all levels and t of psi in
all, psi's loss weighted by a_t (output and target of the UNet, which here are velocities), one caption in ten left out, no pictures of
the data. Theirs are a LoRA as psi, rates of 1e-6 and 1e-3, and Stable Diffusion 2.1; ours are all of the UNet as psi and the rates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from robustkd.defenses.diffusion.one_step.drawing import guided, kept
from robustkd.defenses.diffusion.one_step.score_distillation import (
    DirectedDistillation,
    Models,
    Noised,
    ScoreDistillationParams,
)
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class SwiftBrushParams(ScoreDistillationParams):
    guidance: float = Field(3.0, ge=1, description="of teacher and score; the paper's is 7.5")
    score: Literal["trained", "noise"] = Field(
        "trained", description="the score of the generator's pictures; noise: the control"
    )


class VariationalDistillation(DirectedDistillation):
    """Variational score distillation, under a guidance that a subclass gives."""

    def score_loss(self, models: Models, seen: Noised) -> Tensor:
        """a_t times the loss of diffusion models."""
        return kept(models.teacher, seen.t).flatten() * super().score_loss(models, seen)


class SwiftBrush(VariationalDistillation):
    """Distil the model into a generator of one step, by its score and the score of what is drawn."""

    Params = SwiftBrushParams
    source = "Nguyen and Tran, SwiftBrush, CVPR 2024, arXiv:2312.05239"

    def direction(self, models: Models, seen: Noised, draws: torch.Generator) -> Tensor:
        """(1 - a_t) (eps_phi - eps_psi), or the control's."""
        return noise_difference(models, seen, self.params.guidance, by_score=self.params.score == "trained")


def noise_difference(models: Models, seen: Noised, guidance: float | Tensor, *, by_score: bool = True) -> Tensor:
    """(B, C', H', W') (1 - a_t) (eps_phi - eps_psi), or with the noise itself in the place of eps_psi.

    Args:
        guidance: one for all pictures, or (B, 1, 1, 1).
    """
    teacher, score = models.teacher, models.score
    real = guided(teacher, seen.z, seen.t, seen.captions.meant, guidance, predict=teacher.predict_noise)
    fake = seen.noise
    if by_score:
        fake = guided(score, seen.z, seen.t, seen.captions.asked, guidance, predict=score.predict_noise)
    return (1 - kept(teacher, seen.t)) * (real - fake)
