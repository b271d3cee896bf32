"""Diff-Protect: score distillation through the encoder, so that a diffusion model can make nothing of an image.

    z = latents(x),   t, noise at random,   g = d z / d x  ( eps(z_t, t, c) - noise )
    x <- project( x + size * steepest(g) )      SDS+, away from what the model knows;   SDS-: - g, into its smoothest middle

The gradient of the denoising error would go through the UNet; here the UNet is only asked, and what it says is pulled back through
the encoder. So a step costs one pass of the UNet and none back, and the drawing itself is not differentiated: that is what the
gradient of ``pgd`` costs, one UNet pass both ways for each step of the drawing. The classifier is looked at once, at the end.

Good as a cheap protection of pictures against imitation (targets of the defense ``sdedit``), where the drawing is too long to be
differentiated. It knows nothing of the classifier: ``pgd``, where it can be paid for, is the stronger attack on a purifier.

Source: Xue et al.: Toward effective protection against diffusion-based mimicry through score distillation (ICLR 2024), section 4
and their settings: eps 16/255, steps of 1/255, 100 of them. Two defaults are ours:
``direction: up``, though the paper finds SDS- (``down``) to protect better (its ranking is about imitation, not about a classifier's
errors, and was not measured here); and a random start in the ball, where their code starts at the image. Their variant that aims at
another image (SDST) is not here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from robustkd.attacks.image.engine.ascent import AttackState, Search, SearchResult, SteepestStep, fixed_budget, last_iterate
from robustkd.attacks.image.engine.ball import Ball, StepSize
from robustkd.attacks.image.engine.objective import for_batch
from robustkd.attacks.image.engine.oracle import Objective, Oracle, gradient_of
from robustkd.contracts import Attack, AttackResult, Batch, Params, Target, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.contracts.target import of_kind
from robustkd.lazy import torch
from robustkd.targets.text_encoders import Conditioning
from robustkd.targets.text_to_image import TextToImageTarget

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class ScoreDistillation:
    """The gradient of score distillation: one pass of the UNet a sample, at a noise level and under noise of the sample's own.

    Attributes:
        drawing: the diffusion model.
        hidden: the prompt that it draws under, one row.
        rng: a stream for each sample of the batch.
        sign: 1 for SDS+, -1 for SDS-.
    """

    drawing: TextToImageTarget
    hidden: Conditioning
    rng: SampleRng
    sign: int

    def __call__(self, oracle: Oracle, state: AttackState, objective: Objective, t: int) -> Tensor:
        """(A, *shape) the estimate, which counts as one forward and one backward pass."""
        drawing, draws = self.drawing, self.rng.fork(t).select(state.rows)
        x = state.x.detach().requires_grad_()
        with torch.enable_grad():
            z = drawing.latents(x)
        level = draws.integers((), drawing.timesteps)
        noise = draws.normal(z.shape[1:]).to(z)
        with torch.no_grad():
            noisy = drawing.add_noise(z, noise, level)
            excess = drawing.predict_noise(noisy, level, self.hidden.expand(len(z))) - noise
        gradient = gradient_of(z, x, excess.to(z.dtype))
        oracle.forwards[state.rows] += 1
        oracle.backwards[state.rows] += 1
        return self.sign * gradient


class DiffProtectParams(Params):
    """The number, length and direction of the steps, and the restarts."""

    steps: int = Field(100, ge=1, description="steps in each restart")
    step_size: float | None = Field(None, gt=0, description="in pixel units; default eps / 16")
    direction: Literal["up", "down"] = Field("up", description="of the denoising error: SDS+ increases it, SDS- decreases it")
    restarts: int = Field(1, ge=1, description="attempts from other random starts, on the survivors only")


class DiffProtect(Attack):
    """Score distillation attack on classifiers behind a diffusion model."""

    Params = DiffProtectParams
    norms = ("linf", "l2")
    needs = Attack.needs | {"denoising"}
    source = "Xue et al. 2024, arXiv:2311.12832"

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """Takes a forward pass of the UNet and a backward pass of the encoder in each step; one forward pass of the target in each restart.

        Raises:
            TargetError: the target denoises in another way than a ``PurifiedTarget``.
        """
        from robustkd.targets.redrawn import PurifiedTarget  # late: its module defines a network, and listing imports no torch

        redrawn = of_kind(target.unwrapped, "the target", PurifiedTarget)
        p, drawing, prompt = self.params, redrawn.drawing, redrawn.prompt
        objective, update = for_batch("margin", batch), SteepestStep(StepSize(p.step_size, share=1 / 16))
        with torch.no_grad():
            hidden = drawing.encode(drawing.tokenize([prompt]))

        def attempt(search: Search, rows: Tensor, ball: Ball, restart: int) -> SearchResult:
            draws = rng.fork(restart)
            estimator = ScoreDistillation(drawing, hidden, draws, 1 if p.direction == "up" else -1)
            start = ball.random_point(draws.select(rows))
            x = last_iterate(
                search.oracle, rows, ball, start, objective=objective, update=update, steps=p.steps, estimator=estimator
            )
            logits = search.oracle.logits(x, rows)
            return SearchResult(x, objective(logits, rows).to(x.dtype), search.oracle.is_adversarial(logits, rows))

        return fixed_budget(target, batch, threat, attempt, restarts=p.restarts)
