"""Best-of-N: the request in other spellings, until one of N answers complies.

    repeat:   prompt <- request, in which
                  letters within a word change places   with probability sqrt(sigma) for each word of four letters and more
                  a letter changes its case             with probability sqrt(sigma) for each
                  a sign gives way to its neighbour     with probability sigma^3 for each, in ASCII
              stop if the judge says so

It searches for nothing and needs nothing but answers: what it finds, it finds by trying. So its number is to be read with the number of
attempts, and a model that is sampled gives it more chances than one that answers greedily.

Source: Hughes et al.: Best-of-N jailbreaking (2024), arXiv:2412.03556, the augmentations of text; sigma is theirs. Theirs draw an answer
at temperature 1 for each of up to 10,000 prompts.
"""

from __future__ import annotations

import re

import numpy as np
from pydantic import Field

from robustkd.contracts import Attempts, GenerativeTarget, Params, PromptAttack, PromptBatch, Request, ThreatModel
from robustkd.contracts.random import SampleRng

_LONG_WORD = re.compile(r"\S{4,}")
_FIRST, _LAST = 32, 126
"""The signs of ASCII that can be seen, and the blank."""


class BestOfNParams(Params):
    """How far the spellings are from the request's."""

    sigma: float = Field(0.4, ge=0, le=1, description="0: the request as it is; larger: more of it changes")


class BestOfN(PromptAttack):
    """Random spellings of the request, another one in each attempt."""

    Params = BestOfNParams
    iterative = False
    source = "Hughes et al. 2024, arXiv:2412.03556"

    def search(
        self, target: GenerativeTarget, batch: PromptBatch, attempts: Attempts, threat: ThreatModel, rng: SampleRng
    ) -> None:
        """As many attempts as there are, no pass of its own."""
        prompts = batch.requests["prompt"]
        draws = [np.random.default_rng(seed & (2**63 - 1)) for seed in rng.bits(()).tolist()]
        while len(rows := attempts.open):
            attempts(rows, [Request(respelt(prompts[row], self.params.sigma, draws[row])) for row in rows.tolist()])


def respelt(text: str, sigma: float, draw: np.random.Generator) -> str:
    """A text with other places, cases and signs of its letters; itself at ``sigma`` 0."""

    def scrambled(word: re.Match[str]) -> str:
        inner = list(word[0][1:-1])
        return word[0][0] + "".join(draw.permutation(inner)) + word[0][-1] if draw.random() < sigma**0.5 else word[0]

    letters = list(_LONG_WORD.sub(scrambled, text))
    other_case, other_sign = draw.random((2, len(letters)))
    for place, letter in enumerate(letters):
        if other_case[place] < sigma**0.5 and len(letter.swapcase()) == 1:
            letters[place] = letter = letter.swapcase()
        if other_sign[place] < sigma**3 and _FIRST < ord(letter) <= _LAST:
            letters[place] = chr(min(_LAST, max(_FIRST + 1, ord(letter) + int(draw.choice((-1, 1))))))
    return "".join(letters)
