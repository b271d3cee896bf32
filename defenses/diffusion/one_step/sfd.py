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
and not from a distilled generator. By default G and psi take one step together, on the same samples; ``updates: alternating`` is the
authors' way: by turns, each on draws and by an AdamW of its own.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from robustkd.contracts import FitContext, Prompts
from robustkd.contracts.params import AddedLater
from robustkd.defenses.diffusion.erasing import Erasure, TuningParams, begin
from robustkd.defenses.diffusion.one_step.drawing import guided, in_one_step
from robustkd.defenses.diffusion.one_step.score_distillation import (
    Captions,
    Models,
    Noised,
    ScoreDistillation,
    distil,
    distil_together,
)
from robustkd.lazy import F, torch
from robustkd.targets.text_to_image import TextToImageTarget

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
    updates: Annotated[Literal["together", "alternating"], AddedLater()] = Field(
        "together", description="generator and score on the same draws by one optimiser, or by turns, each on its own"
    )
    score_guidance: Annotated[float, AddedLater()] = Field(1.0, ge=1, description="of the score")
    score_lr: Annotated[float, AddedLater()] = Field(3e-5, gt=0, description="by turns: the score's learning rate")
    critic_steps: Annotated[int, AddedLater()] = Field(
        1, ge=1, description="by turns: its updates before each of the generator"
    )
    beta1: Annotated[float, AddedLater()] = Field(0.0, ge=0, lt=1, description="by turns: AdamW's, of both")
    drop: Annotated[float, AddedLater()] = Field(
        0.0, ge=0, lt=1, description="by turns: how often the score learns without the caption"
    )


class SFD(ScoreDistillation):
    """Distil the model into one that draws in one step, and an erased concept into another one."""

    Params = SFDParams
    source = (
        "Chen et al., Score forgetting distillation, ICLR 2025, arXiv:2409.11219; SiD: Zhou et al., ICML 2024, arXiv:2404.04057"
    )

    def fit(self, context: FitContext[Prompts]) -> TextToImageTarget:
        """Train the generator and its score.

        Raises:
            UsageError, DataError: see ``erasing.begin``.
        """
        p, erasure = self.params, begin(context, self.params)
        models = Models(erasure.original, in_one_step(erasure.target), copy.deepcopy(erasure.original))

        def captions(draws: torch.Generator) -> Captions:
            return _captions(erasure, p, draws)

        train = distil_together if p.updates == "together" else distil
        train(context, "distil", models, captions, self, p)
        return models.generator

    def score_loss(self, models: Models, seen: Noised) -> Tensor:
        """||f_psi(x_t | c) - x_g||^2."""
        fitted = models.score.predict_x0(seen.z, seen.t, seen.captions.asked)
        return F.mse_loss(fitted, seen.drawn, reduction="none").mean((1, 2, 3))

    def generator_loss(self, models: Models, seen: Noised, draws: torch.Generator) -> Tensor:
        """SiD's loss; it goes through teacher and score."""
        p = self.params
        fake = guided(models.score, seen.z, seen.t, seen.captions.asked, p.score_guidance)
        real = guided(models.teacher, seen.z, seen.t, seen.captions.meant, p.guidance)
        return identity_loss(seen.drawn, real, fake, p.alpha)


def _captions(erasure: Erasure, p: SFDParams, draws: torch.Generator) -> Captions:
    """Erased and kept texts, ``batch_size`` of each; the teacher is told other texts in the place of the erased ones."""
    original = erasure.original
    erased, kept = erasure.forget.draw(p.batch_size, draws), erasure.retain.draw(p.batch_size, draws)
    with torch.no_grad():
        asked = original.encode(original.tokenize([*erased, *kept]))
        meant = original.encode(original.tokenize([*erasure.retain.draw(p.batch_size, draws), *kept]))
    weights = torch.tensor([p.forget] * len(erased) + [1.0] * len(kept)).to(original.device)
    return Captions(asked, meant, weights)


def identity_loss(drawn: Tensor, real: Tensor, fake: Tensor, alpha: float) -> Tensor:
    """SiD's loss of each of B drawings, (B,), from what the original and the score see in their noised forms, (B, C', H', W')."""
    difference = real - fake
    scale = (drawn - real).abs().mean((1, 2, 3)).detach().clamp_min(1e-5)
    return (difference * ((fake - drawn) + (1 - alpha) * difference)).mean((1, 2, 3)) / scale
