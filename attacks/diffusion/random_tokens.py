"""Random tokens: the control of every attack that adds tokens.

It adds as many, in the same place, drawn evenly from the same vocabulary, and has as many answers judged; it only does not search.
What a search breaks and this does not, the search has earned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustkd.attacks.diffusion.engine.slots import Slots, SlotsParams, vocabulary
from robustkd.contracts import Attempts, PromptAttack, PromptBatch, Request, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.targets.text_to_image import TextToImageTarget

if TYPE_CHECKING:
    from torch import Tensor

_TRIES = 8  # draws for one attempt; hardly any is no text where each of its tokens is one


class RandomTokensParams(SlotsParams):
    """Parameters of ``random-tokens``; give it those of the attack that it is to be compared with."""


class RandomTokens(PromptAttack[TextToImageTarget]):
    """As many random tokens and as many attempts as a search for tokens has."""

    Params = RandomTokensParams
    modalities = ("text-to-image",)
    needs = PromptAttack.needs | {"tokens"}
    control = True
    source = "this package; the random prefix of Zhang et al. 2024, arXiv:2310.11868, given as many attempts as the attack"

    def search(
        self, target: TextToImageTarget, batch: PromptBatch, attempts: Attempts, threat: ThreatModel, rng: SampleRng
    ) -> None:
        """All attempts, the first one with the request as it is; no pass of its own."""
        p, requests = self.params, batch.requests["prompt"]
        words, slots = vocabulary(target), Slots(target, requests, p.place, p.tokens).leave_full(attempts)
        attempts(everyone := attempts.open, [Request(requests[row]) for row in everyone.tolist()])
        while len(rows := attempts.open):
            rng = rng.fork("next")
            drawn = words[rng.select(rows).integers((_TRIES, p.tokens), len(words)).to(words.device)]
            asked = zip(rows.tolist(), drawn, strict=True)
            attempts(rows, [Request(_text(slots, row, drafts) or requests[row]) for row, drafts in asked])


def _text(slots: Slots, row: int, drafts: Tensor) -> str | None:
    """The first draft that is a text of its tokens."""
    for draft in drafts:
        if slots.roundtrips(row, draft, text := slots.text(row, draft)):
            return text
    return None
