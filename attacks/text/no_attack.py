"""No attack: each request is put to the target once, as it is.

What a model does anyway is no success of an attack. It is the first point of every curve over attempts: Pre-ASR of the unlearning
literature, the direct request of the jailbreak literature.
"""

from __future__ import annotations

from typing_extensions import override

from robustkd.contracts import Attempts, GenerativeTarget, PromptAttack, PromptBatch, Request, ThreatModel
from robustkd.contracts.random import SampleRng


class NoAttack(PromptAttack):
    """The request as it is: one attempt."""

    modalities = ("text", "text-to-image")
    iterative = False
    control = True
    source = "this package; Pre-ASR in Zhang et al. 2024, arXiv:2310.11868"

    @override
    def most_attempts(self, allowed: int) -> int:
        return 1

    def search(
        self, target: GenerativeTarget, batch: PromptBatch, attempts: Attempts, threat: ThreatModel, rng: SampleRng
    ) -> None:
        """One attempt, no pass of its own."""
        rows = attempts.open
        attempts(rows, [Request(batch.requests["prompt"][row]) for row in rows.tolist()])
