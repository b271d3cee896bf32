"""The networks of two-tower targets. Importing it imports torch, so whoever builds one imports it then."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from robustkd.lazy import F, nn, torch

if TYPE_CHECKING:
    from torch import Tensor

_PADDING, _UNKNOWN, _FIRST = 0, 1, 2
_HEAD = 16
"""Dimensions of each attention head."""


class TextTower(nn.Module):
    """A small transformer from words to unit vectors: the mean of the last layer over the words, projected.

    Args:
        words: the vocabulary; other words are one and the same.
        length: the most words of a text; what follows is cut off.
        width: of the transformer, a multiple of 16.
        layers: its depth.
        dimensions: of the vectors.
    """

    def __init__(self, words: Sequence[str], length: int, width: int, layers: int, dimensions: int) -> None:
        super().__init__()
        self.length = length
        self._place = {word: number for number, word in enumerate(words, _FIRST)}
        self.embedding = nn.Embedding(len(words) + _FIRST, width)
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(
            width, max(1, width // _HEAD), 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm, self.projection = nn.LayerNorm(width), nn.Linear(width, dimensions, bias=False)

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """(N, length) int64 of the texts, on the device of the weights."""
        rows = [[self._place.get(word, _UNKNOWN) for word in words_of(text)][: self.length] for text in texts]
        rows = [row or [_UNKNOWN] for row in rows]
        padded = [row + [_PADDING] * (self.length - len(row)) for row in rows]
        return torch.tensor(padded, dtype=torch.int64, device=self.positions.device)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, length) int64 -> (N, D) of length 1."""
        padding = tokens == _PADDING
        states = self.norm(self.blocks(self.embedding(tokens) + self.positions, src_key_padding_mask=padding))
        mean = states.masked_fill(padding.unsqueeze(2), 0.0).sum(1) / (~padding).sum(1, keepdim=True)
        return F.normalize(self.projection(mean), dim=1)


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case, with the hyphens and apostrophes inside of them."""
    return re.findall(r"\w+(?:[-']\w+)*", text.lower())


class WithImageTower(nn.Module):
    """A network whose first half is an encoder of images.

    Attributes:
        image: (B, C, H, W) -> (B, D) features.
    """

    image: nn.Module


class TwoTowers(WithImageTower):
    """Logits from images and one vector for each class: scale * cos(image(x), v_k).

    Args:
        image: (B, C, H, W) -> (B, D) features of any length.
        vectors: (K, D), brought to length 1.
        scale: the inverse temperature.
        text: what made the vectors; None where that is not kept.
    """

    vectors: Tensor
    scale: Tensor

    def __init__(self, image: nn.Module, vectors: Tensor, scale: float, text: TextTower | None = None) -> None:
        super().__init__()
        if text is not None:  # before the image tower, whose last layer is the last one of the network
            self.text = text
        self.image = image
        self.register_buffer("vectors", F.normalize(vectors.detach().float(), dim=1))
        self.register_buffer("scale", torch.tensor(float(scale)))

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        return self.logits_of(self.image(images))

    def logits_of(self, features: Tensor) -> Tensor:
        """(B, D) features of images -> (B, K)."""
        unit = F.normalize(features.flatten(1), dim=1)
        return self.scale.to(unit.dtype) * unit @ self.vectors.T.to(unit.dtype)
