"""SDEdit in front of a classifier: what is left of a picture once a diffusion model has drawn it anew.

    x' = draw back( sqrt(a_t) x + sqrt(1 - a_t) noise ),   answer = f(x')

Two questions are asked of it, and they are one computation. Is a picture safe from imitation? Its clean accuracy says how often an
imitation still shows what the picture did; an attack that breaks it (``diff-protect``) is a protection of the picture. And does
redrawing an input protect the classifier behind (DiffPure)? Then its robust accuracy is the answer, and the gradient through the
drawing, which ``pgd`` takes by itself, has to be part of the attack.

Here the noise is one and the same for every picture; DiffPure draws it anew each time, which attacks have to average over.

Source: Meng et al.: SDEdit: Guided image synthesis and editing with stochastic differential equations (ICLR 2022); Nie et al.:
Diffusion models for adversarial purification (ICML 2022).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from robustkd.contracts import Capabilities, Defense, FitContext, Modality, Params, Prompts, Target, TargetRef
from robustkd.targets import ImageTarget
from robustkd.targets.redrawn import PurifiedTarget
from robustkd.targets.text_to_image import TextToImageTarget


class SDEditParams(Params):
    drawing: TargetRef = Field(description="the defense whose diffusion model draws")
    classifier: TargetRef = Field(description="the defense whose model classifies what was drawn")
    strength: float = Field(0.5, gt=0, le=1, description="share of the drawing's steps that is drawn again; more keeps less")
    prompt: str = Field("", description="what the picture is drawn anew as; empty for nothing in particular")
    seed: int = Field(0, ge=0, description="of the noise, the same for every picture")


class SDEdit(Defense):
    """A classifier of the campaign, behind a diffusion model of the campaign."""

    Params = SDEditParams
    modalities: ClassVar[tuple[Modality, ...]] = ("images",)
    uses_data = False
    source = "Meng et al. 2022, arXiv:2108.01073; Nie et al. 2022, arXiv:2205.07460"

    def target_capabilities(self, others: Mapping[str, Capabilities]) -> Capabilities:
        """Those of the classifier, behind a diffusion model."""
        return others[self.params.classifier] - {"members"} | {"denoising"}

    def fit(self, context: FitContext[Prompts]) -> Target:
        """Put them together.

        Raises:
            UsageError: one draws no pictures, or the other classifies none.
        """
        p = self.params
        drawing, classifier = context.target(p.drawing, TextToImageTarget), context.target(p.classifier, ImageTarget)
        target = PurifiedTarget(drawing, classifier, strength=p.strength, prompt=p.prompt, seed=p.seed).to(context.device)
        target.module.eval()
        return target
