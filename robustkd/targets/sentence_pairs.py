"""How alike two texts are, by networks that a campaign has trained for it: what a judge of answers can ask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from typing_extensions import override

from robustkd.contracts import BaseTarget, Card
from robustkd.contracts.json_value import JsonObject
from robustkd.lazy import torch
from robustkd.targets.frozen import without_gradients

if TYPE_CHECKING:
    from torch import Tensor

    from robustkd.targets.pair_modules import SentencePairs

Reads = Literal["cross", "bi"]
_ROWS = 256


class SentencePairsCard(Card):
    """The card: the vocabulary and the sizes of both encoders, which of them is asked, and what is alike."""

    words: tuple[str, ...]
    length: int
    width: int
    layers: int
    reads: Reads
    threshold: float

    def build(self) -> SentencePairs:
        """The networks in fresh weights (the caller has seeded torch)."""
        from robustkd.targets.pair_modules import SentencePairs  # late: it imports torch

        return SentencePairs(self.words, self.length, self.width, self.layers)


class SentencePairsTarget(BaseTarget):
    """A scorer of pairs of texts. It answers nothing: it is there for judges and analyses.

    Args:
        module: the networks that ``settings`` describe.
        settings: see ``SentencePairsCard``.
    """

    kind = "sentence-pairs"
    capabilities = frozenset({"similarity"})
    module: SentencePairs

    def __init__(self, module: SentencePairs, settings: SentencePairsCard) -> None:
        self.module, self.settings = module, settings

    @property
    def threshold(self) -> float:
        """From which similarity on two texts are said to be alike."""
        return self.settings.threshold

    @without_gradients()
    def similarity(self, first: Sequence[str], second: Sequence[str]) -> Tensor:
        """(N,) float32 on the CPU of N pairs, larger for what is more alike, whatever the order: the cosine of the bi-encoder, or the
        probability of the cross-encoder.
        """
        found = [torch.zeros(0)]
        for start in range(0, len(first), _ROWS):
            one, other = first[start : start + _ROWS], second[start : start + _ROWS]
            if self.settings.reads == "bi":
                found.append(self.module.cosines(one, other).float().cpu())
            else:
                found.append(self.module.cross.pair_logits(one, other).sigmoid().float().cpu())
        return torch.cat(found)

    @override
    def card(self) -> JsonObject:
        return self.settings.to_json()

    @classmethod
    @override
    def from_card(cls, card: JsonObject) -> SentencePairsTarget:
        settings = SentencePairsCard.read(card)
        return cls(settings.build(), settings)
