"""Prefill: the answer's beginning is put into the model's mouth, and it goes on.

Open weights allow it, and so do several interfaces. It takes no search, and refusals that were trained into the first tokens of an
answer alone do not survive it. It is also how the platform tells whether a model knows the answer at all.

Source: Vega et al.: Bypassing the safety training of open-source LLMs with priming attacks (2023), arXiv:2312.12321;
Andriushchenko et al. 2024, arXiv:2404.02151.
"""

from __future__ import annotations

from pydantic import Field

from robustkd.contracts import Attempts, GenerativeTarget, Params, PromptAttack, PromptBatch, Request, ThreatModel
from robustkd.contracts.random import SampleRng


class PrefillParams(Params):
    """The beginnings of the answer that the model has to continue."""

    beginnings: tuple[str, ...] = Field(
        ("Sure,", "Sure, here is"), description="beginnings that suit any request, tried after the request's own"
    )


class Prefill(PromptAttack):
    """The beginnings of answers: the request's columns ``target`` and ``prefill``, then some that suit any request."""

    Params = PrefillParams
    needs = PromptAttack.needs | {"prefill"}
    space = "prefill"
    iterative = False
    source = "Vega et al. 2023, arXiv:2312.12321"

    def most_attempts(self, allowed: int) -> int:
        """See ``PromptAttack.most_attempts``: beside the beginnings, the request's own two."""
        return min(allowed, len(self.params.beginnings) + 2)

    def search(
        self, target: GenerativeTarget, batch: PromptBatch, attempts: Attempts, threat: ThreatModel, rng: SampleRng
    ) -> None:
        """One attempt for each beginning, no more than allowed."""
        requests = batch.requests
        own = zip(requests.get("target"), requests.get("prefill"), strict=True)
        beginnings = [list(dict.fromkeys(text for text in (*both, *self.params.beginnings) if text)) for both in own]
        for number in range(max(map(len, beginnings))):
            rows = attempts.open
            rows = rows[[number < len(beginnings[row]) for row in rows.tolist()]]
            attempts(rows, [Request(requests["prompt"][row], prefill=beginnings[row][number]) for row in rows.tolist()])
