"""The image tower of a CLIP model of transformers, behind its processor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from robustkd.contracts import PluginError
from robustkd.contracts.extras import installation
from robustkd.contracts.json_value import JsonObject
from robustkd.targets.model_files import Processed


class ClipImages(Processed):
    """The image tower of a CLIP model of transformers."""

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, D) projected features."""
        features: Tensor = self.network(pixel_values=self.pixels(images)).image_embeds
        return features


def image_tower(vision: JsonObject, processor: Mapping[str, Any]) -> nn.Module:
    """An image tower of this configuration in fresh weights.

    Raises:
        PluginError: transformers is not installed.
        TargetError: the processor does what is not done here.
    """
    try:
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
    except ImportError as error:
        raise PluginError("the image tower of a CLIP model needs transformers", fix=installation("llm")) from error
    network = CLIPVisionModelWithProjection(CLIPVisionConfig.from_dict(dict(vision)))
    return ClipImages(network, processor, "clip")
