"""Negative prompt: every drawing is led away from what a text describes.

    eps = eps(z_t | negative) + g (eps(z_t | p) - eps(z_t | negative))

It takes the place of the empty prompt in classifier-free guidance, and costs nothing. A search that goes by the model's own predictions
doesn't see it; ``through-guard`` searches on the guided ones.

Control: the model without it, which is another defense of the same campaign.

Source: Ho & Salimans: Classifier-free diffusion guidance (2022), arXiv:2207.12598; as a defense the baseline of Schramowski et al.: Safe
latent diffusion (CVPR 2023), arXiv:2211.05105.
"""

from __future__ import annotations

from pydantic import Field

from robustkd.contracts import FitContext, GenerativeTarget, Params, Prompts, TargetError
from robustkd.defenses.diffusion.guards.guard import DrawingGuard
from robustkd.defenses.text.guards.guard import GuardParams
from robustkd.targets.guarded_drawing import GuardedDrawing, drawing


class NegativePromptSettings(Params):
    """What every drawing is led away from."""

    negative: str = Field(min_length=1, description="what is not to be in the picture", examples=["nudity"])


class NegativePromptTarget(GuardedDrawing[NegativePromptSettings]):
    """A model whose drawings are led away from something; a request's own negative prompt stands behind it."""

    kind = "negative-prompt"
    Settings = NegativePromptSettings

    @property
    def away(self) -> str:
        """The negative prompt."""
        return self.settings.negative


class NegativePromptParams(NegativePromptSettings, GuardParams):
    """The model, and what its drawings are led away from."""


class NegativePrompt(DrawingGuard):
    """Leads every drawing away from what a text describes."""

    Params = NegativePromptParams
    target = NegativePromptTarget
    source = "Ho & Salimans 2022, arXiv:2207.12598; Schramowski et al. 2023, arXiv:2211.05105"

    def settings(
        self, context: FitContext[Prompts], model: GenerativeTarget, reader: GenerativeTarget | None
    ) -> NegativePromptSettings:
        """The negative prompt.

        Raises:
            TargetError: the model draws without guidance, so that a negative prompt has no effect.
            DataError: it is longer than what the model reads.
        """
        drawn = drawing(model)
        if drawn.guidance == 1:
            raise TargetError(
                f"'{self.params.model}' draws with the guidance 1, at which a negative prompt has no effect", fix="raise it"
            )
        drawn.tokenize([self.params.negative])
        return NegativePromptSettings(negative=self.params.negative)
