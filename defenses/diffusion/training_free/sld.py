"""SLD: safe latent guidance leads a drawing away from a concept where it is about to show it (Schramowski et al. 2023, equations 3 to 8).

    mu    = min(1, scale |eps(c) - eps(S)|)  where eps(c) - eps(S) < threshold, else 0         S the concept's text
    gamma = mu (eps(S) - eps(empty)) + momentum_scale nu,      nu <- momentum_decay nu + (1 - momentum_decay) gamma
    eps   = eps(empty) + g (eps(c) - eps(empty) - gamma)       from step ``warmup`` on; before, without gamma

The paper writes max(1, ..) for mu; diffusers' pipeline, with which this is compared number by number, has the minimum. By it, a prompt
that is the concept's own text is not led away at all: word the concept in another way than people ask for it. A search sees
eps(c) - gamma as the model's prediction at every level, without the momentum, which only a whole drawing has: so attacks go through it.

Control: ``scale: 0``. The presets of the paper are weak (200, 15, 0, 0, 0), medium (the default: 1000, 10, .01, .3, .4), strong (2000, 7,
.025, .5, .7) and max (5000, 0, 1, .5, .7): scale, warmup, threshold, momentum_scale, momentum_decay, for 50 steps of drawing and
models that predict noise.

Source: Schramowski et al.: Safe latent diffusion (CVPR 2023), arXiv:2211.05105.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic import Field
from typing_extensions import override

from robustkd.contracts import Params
from robustkd.defenses.diffusion.training_free.alteration import Alteration, AlterationParams
from robustkd.lazy import torch
from robustkd.targets.altered_drawing import AlteredDrawing
from robustkd.targets.text_encoders import Conditioning, joined

if TYPE_CHECKING:
    from torch import Tensor


class SLDSettings(Params):
    """What drawings are led away from, and how far."""

    concept: str = Field(min_length=1, description="what is not to be in the picture", examples=["nudity"])
    scale: float = Field(1000.0, ge=0, description="how soon the guidance is at its full strength; 0: never, the control")
    warmup: int = Field(10, ge=0, description="steps of drawing that are not led away, as the picture is laid out in them")
    threshold: float = Field(0.01, description="how far above the concept's prediction one has to be to be left alone")
    momentum_scale: float = Field(0.3, ge=0, le=1, description="weight of the guidance of the steps before")
    momentum_decay: float = Field(0.4, ge=0, lt=1, description="how much of it is kept with each step")


class SLDTarget(AlteredDrawing[SLDSettings]):
    """A model whose drawings are led away from a concept."""

    kind = "sld"
    Settings = SLDSettings

    @override
    def unet_output(self, latents: Tensor, t: Tensor, hidden: Conditioning) -> Tensor:
        given = super().unet_output(latents, t, hidden)
        if not self.settings.scale:
            return given
        t = t.to(self.device)
        with torch.no_grad():
            empty, concept = self._others(len(hidden))
            without, unsafe = self._asked(
                torch.cat([latents] * 2).to(self.dtype), torch.cat([t, t]), empty.then(concept)
            ).chunk(2)
        return given - away_from(without, given, unsafe, self.settings.scale, self.settings.threshold)

    def _others(self, count: int) -> tuple[Conditioning, Conditioning]:
        """The empty prompt and the concept, ``count`` rows of each."""
        concept = self.encode(self.tokenize([self.settings.concept]))
        return self.unconditional().expand(count), concept.expand(count)

    @override
    def _predictor(
        self, hidden: Conditioning, empty: Conditioning | None, guidance: float
    ) -> Callable[[Tensor, Tensor], Tensor]:
        s = self.settings
        if not s.scale:
            return super()._predictor(hidden, empty, guidance)
        nothing, concept = self._others(len(hidden))
        told = joined([nothing if empty is None else empty.expand(len(hidden)), hidden, concept])
        step, momentum = 0, torch.zeros((), device=self.device)

        def predict(seen: Tensor, t: Tensor) -> Tensor:
            nonlocal step, momentum
            without, given, unsafe = self._asked(torch.cat([seen] * 3), t, told).float().chunk(3)
            away = away_from(without, given, unsafe, s.scale, s.threshold) + s.momentum_scale * momentum
            momentum = s.momentum_decay * momentum + (1 - s.momentum_decay) * away
            led = given - without - (away if step >= s.warmup else 0)
            step += 1
            return without + guidance * led

        return predict


def away_from(without: Tensor, given: Tensor, unsafe: Tensor, scale: float, threshold: float) -> Tensor:
    """mu (eps(S) - eps(empty)), of the shape of the predictions for the empty prompt, the prompt and the concept."""
    strength = (scale * (given - unsafe).abs()).clamp_max(1)
    return torch.where(given - unsafe >= threshold, torch.zeros_like(strength), strength) * (unsafe - without)


class SLDParams(SLDSettings, AlterationParams):
    """The model, and what its drawings are led away from."""


class SLD(Alteration):
    """Leads drawings away from a concept, as far as they are about to show it."""

    Params = SLDParams
    target = SLDTarget
    source = "Schramowski et al., Safe latent diffusion, CVPR 2023, arXiv:2211.05105"

    def texts(self) -> list[str]:
        """The concept."""
        return [self.params.concept]
