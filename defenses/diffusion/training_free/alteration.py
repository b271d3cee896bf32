"""What the defenses share that alter how another defense's model draws."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from robustkd.contracts import BaseTarget, Capabilities, FitContext, Params, Prompts, TargetRef
from robustkd.defenses.diffusion.text_to_image_defense import TextToImageDefense
from robustkd.targets.altered_drawing import AlteredDrawing
from robustkd.targets.text_to_image import TextToImageTarget


class AlterationParams(Params):
    """Which model is altered."""

    model: TargetRef = Field(description="the defense whose model draws", examples=["model"])


class Alteration(TextToImageDefense):
    """Another defense's model that draws in another way. A subclass names its ``target``."""

    uses_data = False
    target: ClassVar[type[AlteredDrawing[Any]]]

    def target_capabilities(self, others: Mapping[str, Capabilities]) -> Capabilities:
        """Those of the model."""
        return others[self.params.model]

    def parts(self, target: BaseTarget) -> Mapping[str, BaseTarget]:
        """See ``Defense.parts``: the model."""
        assert isinstance(target, AlteredDrawing)
        return {self.params.model: target.model}

    def fit(self, context: FitContext[Prompts]) -> AlteredDrawing[Any]:
        """Alter the model.

        Raises:
            UsageError: the model draws nothing.
            DataError: a text is longer than what it reads.
        """
        model = context.target(self.params.model, TextToImageTarget)
        kept = self.target.Settings
        settings: Any = kept(**self.params.model_dump(include=set(kept.model_fields)))
        target = self.target(model, settings)
        target.tokenize(self.texts())
        target.to(context.device).module.eval()
        return target

    def texts(self) -> list[str]:
        """What of the parameters the model has to read."""
        return []
