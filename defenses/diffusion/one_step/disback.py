"""DisBack: distil along the way from the generator to its teacher, walked backwards (Zhang et al. 2024, sections 4.1 and 4.2).

    1. degradation   a copy of the teacher is tuned on what the undistilled generator draws; after each of ``waypoints`` equal parts it is
                     kept: phi_0 = the teacher, .., phi_M, which knows the generator's pictures
    2. distillation  as in ``dmd2``, with phi_M, .., phi_1, phi_0 as the teacher, each for an equal part of the steps; the last one is the
                     teacher itself

``waypoints: 0`` leaves the first stage out: that is ``dmd2``, its control. Of an erased teacher the way begins at pictures that its
generator still draws before it is distilled. As read in the authors' main/degradation.py: the two stages and their order. Theirs are the
settings of DMD2 on SDXL and a rate of 5e-7; the number of steps of each stage is ours.
"""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.contracts import FitContext, Prompts
from robustkd.defenses.diffusion.one_step.dmd2 import DMD2, DMD2Params
from robustkd.defenses.diffusion.one_step.score_distillation import Models, captions_of, distil, pictures
from robustkd.defenses.training.steps import StepParams, train_steps
from robustkd.lazy import torch
from robustkd.targets.text_to_image import TextToImageTarget

if TYPE_CHECKING:
    from torch import Tensor


class DisBackParams(DMD2Params):
    waypoints: int = Field(3, ge=0, description="models kept on the way from the teacher to the generator, M")
    degradation_steps: int = Field(60, ge=1, description="updates of the first stage")
    degradation_lr: float = Field(1e-3, gt=0, description="its learning rate")


class DisBack(DMD2):
    """Distil the model into a generator of one step, from the generator's own distribution to the model's."""

    Params = DisBackParams
    source = (
        "Zhang et al., Distribution backtracking builds a faster convergence trajectory for diffusion distillation, 2024, "
        "arXiv:2408.15991"
    )

    def fit(self, context: FitContext[Prompts]) -> TextToImageTarget:
        """Both stages.

        Raises:
            UsageError: the base draws nothing.
        """
        p = self.params
        models = Models.begin(context.target(p.base, TextToImageTarget).to(context.device))
        captions = captions_of(context, models.teacher, p.batch_size)
        teachers = [models.teacher, *self._way(context, models)]
        parts = shares(p.steps, len(teachers))
        for number, steps in zip(reversed(range(len(teachers))), parts, strict=True):
            stage, name = Models(teachers[number], models.generator, models.score), f"distil-{number}" if number else "distil"
            if steps:
                distil(context, name, stage, captions, self, p.model_copy(update={"steps": steps}))
        return models.generator

    def _way(self, context: FitContext[Prompts], models: Models) -> list[TextToImageTarget]:
        """phi_1, .., phi_M."""
        p, walking = self.params, copy.deepcopy(models.teacher)
        captions, found = captions_of(context, models.teacher, p.batch_size), []

        def loss(draws: torch.Generator) -> Tensor:
            with torch.no_grad():
                seen = pictures(models, captions(draws), (0.0, 1.0), draws)
                aim = walking.training_target(seen.drawn, seen.noise, seen.t)
            return (walking.unet_output(seen.z, seen.t, seen.captions.asked) - aim).square().mean()

        for number, steps in enumerate(shares(p.degradation_steps, p.waypoints) if p.waypoints else []):
            if steps:
                settings = StepParams(steps=steps, batch_size=p.batch_size, lr=p.degradation_lr, schedule="constant")
                train_steps(context, f"degrade-{number}", dict(walking.unet.named_parameters()), loss, settings)
            found.append(copy.deepcopy(walking))
        return found


def shares(steps: int, parts: int) -> list[int]:
    """How many of ``steps`` each of ``parts`` gets: as even as can be, the last ones more."""
    ends = [steps * number // parts for number in range(parts + 1)]
    return [end - start for start, end in pairwise(ends)]
