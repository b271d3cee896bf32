"""The networks that compare two texts. Importing it imports torch, so whoever builds one imports it then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from robustkd.lazy import F, nn, torch
from robustkd.targets.tower_modules import TextTower, words_of

if TYPE_CHECKING:
    from torch import Tensor

_SEPARATOR = "<separator>"
"""A word that no text has."""


class PairTower(TextTower):
    """A cross-encoder: both texts are read as one, and a linear layer says how alike they are. The order of the two is no matter.

    Args:
        words, width, layers: see ``TextTower``.
        length: the most words of each text; what follows is cut off.
    """

    def __init__(self, words: Sequence[str], length: int, width: int, layers: int) -> None:
        super().__init__((*words, _SEPARATOR), 2 * length + 1, width, layers, width)
        self.each, self.separator = length, len(words) + 2  # behind the two ids that stand for no word
        self.head = nn.Linear(width, 1)

    def pair_logits(self, first: Sequence[str], second: Sequence[str]) -> Tensor:
        """(N,) logits of N pairs: the mean over both orders."""
        both = torch.cat([self._read(first, second), self._read(second, first)])
        one, other = (
            self.head(self.positions.shape[1] ** 0.5 * self(both)).squeeze(1).chunk(2)
        )  # as long as a state of the network
        return (one + other) / 2

    def _read(self, first: Sequence[str], second: Sequence[str]) -> Tensor:
        """(N, 2 * length + 1) ids: the words of one text, the separator, those of the other."""
        parts = [[" ".join(words_of(text)[: self.each]) for text in texts] for texts in (first, second)]
        rows = []
        for one, other in zip(self.tokens(parts[0]), self.tokens(parts[1]), strict=True):
            joined = torch.cat([one[one != 0], one.new_tensor([self.separator]), other[other != 0]])
            rows.append(F.pad(joined, (0, self.length - len(joined))))
        return torch.stack(rows)


class SentencePairs(nn.Module):
    """A bi-encoder and a cross-encoder of the same words and shapes, so that either can begin with the weights of the other.

    Args:
        words, width, layers: see ``TextTower``.
        length: the most words of each text of a pair.
    """

    def __init__(self, words: Sequence[str], length: int, width: int, layers: int) -> None:
        super().__init__()
        self.bi = TextTower((*words, _SEPARATOR), 2 * length + 1, width, layers, width)
        self.cross = PairTower(words, length, width, layers)

    def hand_over(self, to: Literal["cross", "bi"]) -> None:
        """Give one encoder the weights of the other; the head of the cross-encoder stays."""
        giving, taking = (self.bi, self.cross) if to == "cross" else (self.cross, self.bi)
        own = taking.state_dict()
        taking.load_state_dict(own | {name: weight for name, weight in giving.state_dict().items() if name in own})

    def cosines(self, first: Sequence[str], second: Sequence[str]) -> Tensor:
        """(N,) in [-1, 1], of the bi-encoder, which reads each text by itself."""
        return (self.bi(self.bi.tokens(first)) * self.bi(self.bi.tokens(second))).sum(1)
