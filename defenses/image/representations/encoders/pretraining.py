"""The network that contrastive pre-training trains. Importing it imports torch, so whoever builds one imports it then."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from robustkd.defenses.image.representations.encoders.class_texts import class_vectors
from robustkd.lazy import F, nn, torch
from robustkd.targets.two_tower import TEMPERATURE

if TYPE_CHECKING:
    from torch import Tensor

    from robustkd.targets.tower_modules import TextTower


class Pretraining(nn.Module):
    """Both towers and the learnt scale; the class vectors are those of the text tower as it is now.

    Args:
        image: (B, C, H, W) -> (B, D).
        text: the text tower.
        names: of the K classes.
        templates: of their texts.
    """

    def __init__(self, image: nn.Module, text: TextTower, names: Sequence[str], templates: Sequence[str]) -> None:
        super().__init__()
        self.text, self.image = text, image
        self.log_scale = nn.Parameter(torch.tensor(-math.log(TEMPERATURE)))
        self._names, self._templates = names, templates
        self._kept: Tensor | None = None

    def train(self, mode: bool = True) -> Pretraining:
        """See ``nn.Module.train``; the class vectors are made anew."""
        self._kept = None
        super().train(mode)
        return self

    def scale(self, largest: float) -> Tensor:
        """The inverse temperature, at most ``largest``."""
        return self.log_scale.exp().clamp(max=largest)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        if self._kept is None or self.training:
            self._kept = class_vectors(self.text, self._names, self._templates)
        unit = F.normalize(self.image(images).flatten(1), dim=1)
        return self.log_scale.exp() * unit @ self._kept.T
