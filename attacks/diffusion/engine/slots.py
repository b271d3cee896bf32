"""Where an attack on a text-to-image model puts its tokens, and which tokens it may take.

What is judged is a text, so a token counts only if it comes back from decoding and tokenising as itself. Tokens that do not
on their own are left out of the search; what does not in the company of others is not proposed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from robustkd.contracts import Attempts, DataError, Params, UsageError
from robustkd.lazy import torch
from robustkd.targets.text_to_image import TextToImageTarget

if TYPE_CHECKING:
    from torch import Tensor

Place = Literal["prefix", "suffix", "insert", "replace", "every-three-words"]
_CHUNK = 4096
_WORDS = 3


class SlotsParams(Params):
    """How many tokens an attack adds, and where."""

    tokens: int = Field(5, ge=1, description="how many tokens are added to the request")
    place: Place = Field(
        "prefix",
        description="where: before it, after it, in its middle, in its place (replace), or one token after every three words",
    )


class Slots:
    """``count`` positions in each of N requests.

    Args:
        place: before the request, after it, after the first half of its words, in its place, or one token after every three words (where
            the words end before the tokens do, the others are behind them).
        count: how many tokens are added.

    Raises:
        UsageError: the model reads fewer than ``count`` tokens.

    Attributes:
        ids: (N, T) int64, the tokens of each request, with padding in its slots.
        positions: (N, count) int64, where the slots are.
        end: (N,) int64, where the ``eos`` is.
        full: the requests that leave no room for ``count`` tokens; theirs are in the place of all else.
    """

    def __init__(self, target: TextToImageTarget, requests: Sequence[str], place: Place, count: int) -> None:
        self._target, self.count = target, count
        self._pieces = [_pieces(request, place, count) for request in requests]
        bodies = [[_body(target, text) for text in pieces.texts] for pieces in self._pieces]
        room = target.max_tokens - 2 - count
        if room < 0:
            raise UsageError(f"the model reads {target.max_tokens - 2} tokens", fix="lower the attack's 'tokens'")
        self.full = [row for row, parts in enumerate(bodies) if sum(map(len, parts)) > room]
        for row in self.full:
            bodies[row] = [[] for _ in bodies[row]]
        rows, positions, ends = [], [], []
        for pieces, parts in zip(self._pieces, bodies, strict=True):
            laid: list[int] = [target.bos]
            slots: list[int] = []
            for part, size in zip(parts, (*pieces.sizes, 0), strict=True):
                laid += part
                slots += range(len(laid), len(laid) + size)
                laid += [target.pad] * size
            ends.append(len(laid))
            rows.append([*laid, target.eos] + [target.pad] * (target.max_tokens - len(laid) - 1))
            positions.append(slots)
        self.ids = torch.tensor(rows, dtype=torch.int64, device=target.device)
        self.positions = torch.tensor(positions, dtype=torch.int64, device=target.device)
        self.end = torch.tensor(ends, dtype=torch.int64, device=target.device)

    def leave_full(self, attempts: Attempts) -> Slots:
        """Have the attack leave the requests without room; returns itself."""
        read = self._target.max_tokens - 2
        attempts.leave(
            torch.tensor(self.full, dtype=torch.int64), f"the request leaves no room for {self.count} more of {read} tokens"
        )
        return self

    def filled(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """(B, T), the requests ``rows`` with (B, count) tokens in their slots."""
        return self.ids[rows].scatter(1, self.positions[rows], tokens)

    def text(self, row: int, tokens: Tensor) -> str:
        """A request with (count,) tokens in its slots, as a text."""
        pieces = self._pieces[row]
        groups = [self._target.decode(group) for group in tokens.split(list(pieces.sizes))]
        parts = [part for pair in zip(pieces.texts, [*groups, ""], strict=True) for part in pair]
        return " ".join(part for part in parts if part)

    def roundtrips(self, row: int, tokens: Tensor, text: str) -> bool:
        """Whether ``text``, which is ``text(row, tokens)``, has these tokens in these slots again."""
        try:
            again = self._target.tokenize([text])[0]
        except DataError:  # it has become longer than the model reads
            return False
        return torch.equal(again, self.filled(torch.tensor([row]), tokens.unsqueeze(0))[0])


def vocabulary(target: TextToImageTarget) -> Tensor:
    """(A,) int64, the tokens that come back from decoding and tokenising as themselves.

    Raises:
        UsageError: there is none.
    """
    # By name as well: an eos that is also the padding comes back from nothing.
    ids = [token for token in range(target.embedding.num_embeddings) if token not in target.special.values()]
    kept = []
    for tokens in torch.tensor(ids, device=target.device).split(_CHUNK):
        alone = torch.full((len(tokens), target.max_tokens), target.pad, device=target.device)
        alone[:, 0], alone[:, 1], alone[:, 2] = target.bos, tokens, target.eos
        again = target.tokenize([target.decode([token]) for token in tokens.tolist()])
        kept.append(tokens[(again == alone).all(1) & target.encoders.read_alike(tokens)])
    found = torch.cat(kept)
    if not len(found):
        raise UsageError("no token of the model's tokenizer survives decoding and tokenising", fix="check the tokenizer")
    return found


@dataclass(frozen=True)
class _Pieces:
    """The texts of a request between which tokens are added, and how many tokens are behind each of them but the last."""

    texts: tuple[str, ...]
    sizes: tuple[int, ...]


def _pieces(request: str, place: Place, count: int) -> _Pieces:
    if place != "every-three-words":
        return _Pieces(_around(request, place), (count,))
    words = request.split()
    groups = [" ".join(words[first : first + _WORDS]) for first in range(0, len(words), _WORDS)] or [""]
    last = min(count, len(groups))
    return _Pieces((*groups[:last], " ".join(groups[last:])), (*[1] * (last - 1), count - last + 1))


def _around(request: str, place: Place) -> tuple[str, str]:
    if place == "prefix":
        return "", request
    if place == "suffix":
        return request, ""
    if place == "replace":
        return "", ""
    words = request.split()
    half = (len(words) + 1) // 2
    return " ".join(words[:half]), " ".join(words[half:])


def _body(target: TextToImageTarget, text: str) -> list[int]:
    """The tokens of a text without those that the model puts around it."""
    ids: list[int] = target.tokenize([text])[0].tolist()
    return ids[1 : ids.index(target.eos, 1)]
