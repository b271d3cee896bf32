"""A diffusion model that draws in another way than it was trained to, with the same weights.

It is a diffusion model itself: what an attack asks it, and the gradients that it takes, go through what was altered, with no need to know
of it. A subclass overrides how prompts are encoded, what the UNet says, or what a drawing asks at each level.
"""

from __future__ import annotations

from typing import Any, ClassVar, Generic

from typing_extensions import TypeVar, override

from robustkd.contracts import Card, Params
from robustkd.contracts.json_value import JsonObject
from robustkd.contracts.target import of_kind
from robustkd.targets.cards import target_from_card
from robustkd.targets.text_to_image import TextToImageTarget

Told = TypeVar("Told", bound=Params, default=Params)


class AlteredDrawingCard(Card):
    """The card of an altered model: that of the model, and the settings of what was altered."""

    model: JsonObject
    settings: JsonObject


class SameWeights(TextToImageTarget):
    """A diffusion model with the weights and settings of another, ``model``."""

    def __init__(self, model: TextToImageTarget) -> None:
        super().__init__(
            model.module,
            model.tokenizer,
            model.special,
            model.scheduler,
            guidance=model.guidance,
            steps=model.steps,
            second=model.second,
            negative_prompt=model.negative_prompt,
        )
        self.model = model


class AlteredDrawing(SameWeights, Generic[Told]):
    """A diffusion model with something altered. A subclass names its ``Settings``.

    Args:
        model: it shares its weights.
        settings: as its card keeps them.
    """

    Settings: ClassVar[type[Params]]

    def __init__(self, model: TextToImageTarget, settings: Told) -> None:
        super().__init__(model)
        self.settings = settings

    @override
    def drawing_by(self, scheduler: Any, *, guidance: float, steps: int) -> TextToImageTarget:
        return type(self)(self.model.drawing_by(scheduler, guidance=guidance, steps=steps), self.settings)

    @override
    def card(self) -> JsonObject:
        settings: Any = self.settings
        return AlteredDrawingCard(
            target=self.kind, model=self.model.card(), settings=settings.model_dump(mode="json")
        ).to_json()

    @classmethod
    @override
    def from_card(cls, card: JsonObject) -> AlteredDrawing[Any]:
        own = AlteredDrawingCard.read(card)
        settings: Any = cls.Settings.model_validate(own.settings)
        return cls(of_kind(target_from_card(own.model), "model", TextToImageTarget), settings)
