"""Stable Diffusion's safety checker: a picture that CLIP holds similar to one of 17 concepts is replaced by a black one.

    alarm(x) = max_k ( cos( clip(x), concept_k ) - threshold_k ) + .01 [ one of 3 special concepts is above its threshold ]

The concepts are vectors in its file; nobody has published their names. It looks at the picture that was drawn, and at no prompt.
``through-guard`` has its alarm in the loss, at the picture that the UNet sees in a noised one.

Pictures are brought to CLIP's size in operations with gradients; diffusers rounds them to 256 levels and resizes these, which moves a
score by some thousandths.

Control: the model without it, which is another defense of the same campaign.

Source: the safety_checker part of Stable Diffusion 1.x (Rombach et al. 2022), as Rando et al.: Red-teaming the Stable Diffusion safety
filter (2022), arXiv:2210.04610, have taken it apart.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field
from typing_extensions import override

from robustkd.contracts import CampaignPath, FitContext, GenerativeTarget, Params, Prompts, TargetError, UsageError
from robustkd.contracts.json_value import JsonObject
from robustkd.defenses.diffusion.guards.guard import DrawingGuard
from robustkd.defenses.text.guards.guard import GuardParams
from robustkd.lazy import F, torch
from robustkd.targets.guarded_drawing import GuardedDrawing
from robustkd.targets.pretrained import pretrained_network
from robustkd.targets.text_to_image import require_diffusers

if TYPE_CHECKING:
    from torch import Tensor

_PART = "safety_checker"
_ROUNDED = 5e-4
"""Scores are rounded to three digits before they are compared with 0."""
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class SafetyCheckerSettings(Params):
    """How the network is built that looks at pictures."""

    network: JsonObject = Field(description="its configuration")


class SafetyCheckerTarget(GuardedDrawing[SafetyCheckerSettings]):
    """A model whose pictures are looked at by the checker."""

    kind = "safety-checker"
    Settings = SafetyCheckerSettings

    def __init__(
        self, model: GenerativeTarget, settings: SafetyCheckerSettings, reader: GenerativeTarget | None = None
    ) -> None:
        super().__init__(model, settings, reader)
        require_diffusers()
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
        from transformers import CLIPConfig

        self.checker: Any = StableDiffusionSafetyChecker(CLIPConfig.from_dict(dict(settings.network)))
        named: Any = self.module
        named["checker"] = self.checker

    @override
    def picture_alarm(self, pictures: Tensor) -> Tensor:
        net, side = self.checker, self.checker.config.vision_config.image_size
        height, width = pictures.shape[-2:]
        ratio = side / min(height, width)
        resized = F.interpolate(
            pictures.float(), (round(height * ratio), round(width * ratio)), mode="bicubic", antialias=True, align_corners=False
        ).clamp(0, 1)
        top, left = ((length - side) // 2 for length in resized.shape[-2:])
        seen = resized[..., top : top + side, left : left + side]
        mean, std = (torch.tensor(values, device=seen.device).reshape(1, 3, 1, 1) for values in (_MEAN, _STD))
        embedded = net.visual_projection(net.vision_model((seen - mean) / std)[1])
        special, plain = (
            F.normalize(embedded) @ F.normalize(concepts).T - thresholds
            for concepts, thresholds in (
                (net.special_care_embeds, net.special_care_embeds_weights),
                (net.concept_embeds, net.concept_embeds_weights),
            )
        )
        care = 0.01 * (special >= _ROUNDED).any(1)
        alarm: Tensor = plain.amax(1) + care - _ROUNDED
        return alarm


class SafetyCheckerParams(GuardParams):
    """The model, and the checker."""

    folder: CampaignPath = Field(
        description="the part safety_checker of a pipeline's folder (config.json, safetensors), or that pipeline's folder",
        examples=["stable-diffusion-v1-4/safety_checker"],
    )


class SafetyChecker(DrawingGuard):
    """Replaces pictures that Stable Diffusion's safety checker objects to by black ones."""

    Params = SafetyCheckerParams
    target = SafetyCheckerTarget
    source = "Rombach et al. 2022, arXiv:2112.10752; Rando et al. 2022, arXiv:2210.04610"

    @cached_property
    def _folder(self) -> Path:
        folder: Path = self.params.folder
        return folder / _PART if (folder / _PART).is_dir() else folder

    @override
    def files(self) -> list[Path]:
        """The configuration and the weights.

        Raises:
            UsageError: one is missing, or it is another model's.
        """
        config, weights = self._folder / "config.json", sorted(self._folder.glob("*.safetensors"))
        if not config.is_file() or not weights:
            raise UsageError(
                f"{self._folder} holds no config.json with *.safetensors",
                fix="copy the part safety_checker of Stable Diffusion 1.x whole, as save_pretrained writes it",
            )
        written = json.loads(config.read_text())
        if not isinstance(written, Mapping) or "vision_config" not in written:
            raise UsageError(
                f"{config} is not that of a safety checker: it has no vision_config", fix="give that part's folder"
            )
        return [config, *weights]

    @override
    def settings(
        self, context: FitContext[Prompts], model: GenerativeTarget, reader: GenerativeTarget | None
    ) -> SafetyCheckerSettings:
        self.files()
        return SafetyCheckerSettings(network=json.loads((self._folder / "config.json").read_text()))

    @override
    def fit(self, context: FitContext[Prompts]) -> GuardedDrawing[Any]:
        """Put the checker behind the model.

        Raises:
            UsageError, TargetError: a file is missing, damaged or another model's.
        """
        require_diffusers()
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

        target = super().fit(context)
        assert isinstance(target, SafetyCheckerTarget)
        loaded = pretrained_network(StableDiffusionSafetyChecker, self._folder, unused="position_ids", use_safetensors=True)
        try:
            target.checker.load_state_dict(loaded.state_dict())
        except RuntimeError as error:
            raise TargetError(f"{self._folder} does not fit its own configuration", fix="copy it again") from error
        return target
