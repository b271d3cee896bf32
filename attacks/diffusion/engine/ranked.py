"""Prompts that a search has found, put to the model in the search's own order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from robustkd.attacks.diffusion.engine.slots import Slots
from robustkd.contracts import Attempts, Request
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def attempt_in_order(attempts: Attempts, slots: Slots, found: Mapping[int, Tensor]) -> None:
    """Judge the prompts of each request, the best first, as long as it stands and has attempts left.

    A prompt that is no text of its tokens, or that was judged before, is left out.

    Args:
        found: by row (P, k) tokens, the same P for all.
    """
    for place in range(max((len(tokens) for tokens in found.values()), default=0)):
        rows = attempts.open
        if not len(rows):
            return
        places, asked = [], []
        for row in rows.tolist():
            tokens = found[row][place]
            text = slots.text(row, tokens)
            repeated = bool((found[row][:place] == tokens).all(1).any())
            if not repeated and slots.roundtrips(row, tokens, text):
                places.append(row)
                asked.append(Request(text))
        if places:
            attempts(torch.tensor(places, dtype=torch.int64), asked)
