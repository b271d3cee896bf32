"""Guards around a model that draws: before it, in how it draws, and behind it.

A guard may hold a prompt back, lead every drawing away from something, or hold a finished picture back. What is held back is a black
picture. ``BehindDrawingGuards`` is the model as somebody who knows the guards would search on it:

    prompts          only those are proposed that every guard lets pass
    predictions      eps(z_t | away) + g (eps(z_t | p) - eps(z_t | away))          where a guard leads away from something
    pictures         error + weight * sum over guards max(0, alarm(decoded x_0 that the UNet sees in z_t))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from typing_extensions import TypeVar, override

from robustkd.contracts import GenerativeTarget, Params, Request, TargetError
from robustkd.lazy import torch
from robustkd.targets.altered_drawing import SameWeights
from robustkd.targets.guarded import GuardedTarget, guards_of, unguarded
from robustkd.targets.text_encoders import Conditioning
from robustkd.targets.text_to_image import TextToImageTarget

if TYPE_CHECKING:
    from torch import Tensor

Told = TypeVar("Told", bound=Params, default=Params)


class GuardedDrawing(GuardedTarget[Told]):
    """A model that draws, with a guard. A subclass is one guard: it overrides one of the methods below.

    Raises:
        TargetError: the model behind all guards is no diffusion model of robustkd.
    """

    def __init__(self, model: GenerativeTarget, settings: Told, reader: GenerativeTarget | None = None) -> None:
        super().__init__(model, settings, reader)
        drawing(model)

    def holds_back(self, prompt: str) -> bool:
        """Whether nothing is drawn for a prompt."""
        return False

    @property
    def away(self) -> str:
        """What every drawing is led away from, "" for nothing."""
        return ""

    def picture_alarm(self, pictures: Tensor) -> Tensor | None:
        """(B, C, H, W) in [0, 1] -> (B,): how far each is above what the guard lets pass, differentiable; None where it looks at none."""
        return None

    def respond(self, asked: Sequence[Request]) -> list[Any]:
        """The model's pictures, as far as the guard lets prompts and pictures pass."""
        led = [replace(question, negative_prompt=_both(self.away, question.negative_prompt)) for question in asked]
        passed = [
            place
            for place, question in enumerate(asked)
            if question.embeddings is not None or not self.holds_back(question.prompt)
        ]
        answers: dict[int, Any] = dict(zip(passed, self.model.respond([led[place] for place in passed]), strict=True))
        for place, question in enumerate(asked):
            if place not in answers:
                answers[place] = self._withheld(drawing(self.model).picture_shape(question.size), "prompt")
            elif self._objects(answers[place]):
                answers[place] = self._withheld(answers[place].shape, "picture")
        return [answers[place] for place in range(len(asked))]

    def _objects(self, picture: Tensor) -> bool:
        with torch.no_grad():
            alarm = self.picture_alarm(picture.to(self.device).unsqueeze(0))
        return alarm is not None and bool(alarm > 0)

    def _withheld(self, shape: Sequence[int], what: str) -> Tensor:
        from robustkd.targets.withheld import Withheld  # late: it imports torch

        return Withheld.of(shape, f"[the {what} was held back by the guard {self.kind}]")


def drawing(target: GenerativeTarget) -> TextToImageTarget:
    """The diffusion model behind all guards.

    Raises:
        TargetError: it is none of robustkd.
    """
    model = unguarded(target)
    if not isinstance(model, TextToImageTarget):
        raise TargetError(f"a {model.kind} is no diffusion model that could be guarded", fix="name a defense that draws")
    return model


class BehindDrawingGuards(SameWeights):
    """A diffusion model as a search sees it that knows the guards around it; see the module. It shares the model's weights.

    Args:
        target: the guarded model.
        weight: of the guards' alarms about pictures.

    Raises:
        TargetError: the model is no diffusion model of robustkd.
    """

    def __init__(self, target: GenerativeTarget, weight: float) -> None:
        super().__init__(drawing(target))
        self.guards = [guard for guard in guards_of(target) if isinstance(guard, GuardedDrawing)]
        self.weight = weight
        self.away = ", ".join(text for text in (self.negative_prompt, *(guard.away for guard in reversed(self.guards))) if text)
        with torch.no_grad():
            self._away = self.unconditional(self.away) if self.away else None

    def lets_pass(self, prompt: str) -> bool:
        """Whether every guard lets the model draw for a prompt."""
        return not any(guard.holds_back(prompt) for guard in self.guards)

    @override
    def encode(self, ids: Tensor | None = None, embeddings: Tensor | None = None) -> Conditioning:
        return self.model.encode(ids, embeddings)  # which may be an altered one (``AlteredDrawing``)

    @override
    def unet_output(self, latents: Tensor, t: Tensor, hidden: Conditioning) -> Tensor:
        given = self.model.unet_output(latents, t, hidden)
        if self._away is None:
            return given
        with torch.no_grad():
            without = self.model.unet_output(latents, t, self._away.expand(len(hidden)))
        return without + self.guidance * (given - without)

    def alarm(self, latents: Tensor, t: Tensor, hidden: Conditioning) -> Tensor | float:
        """(B,) the weighted alarms about what the UNet sees in noised latents; 0 where no guard looks at pictures."""
        watching = [guard for guard in self.guards if type(guard).picture_alarm is not GuardedDrawing.picture_alarm]
        if not watching:
            return 0.0
        pictures = self.decode_latents(self.predict_x0(latents, t, hidden))
        alarms = [guard.picture_alarm(pictures) for guard in watching]
        total = sum(alarm.clamp_min(0) for alarm in alarms if alarm is not None)
        return self.weight * total


def _both(own: str, other: str) -> str:
    return ", ".join(text for text in (own, other) if text)
