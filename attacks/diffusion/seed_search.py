"""Seed search: the request as it is, drawn again with other random numbers; of a language model, sampled again.

It finds what the model still draws, or says, now and then. The control of attacks on prompts with as many judged answers; it attacks
another thing, so it is shown beside the worst case over prompts, not in it.
"""

from __future__ import annotations

from robustkd.contracts import Attempts, GenerativeTarget, PromptAttack, PromptBatch, Request, ThreatModel
from robustkd.contracts.random import SampleRng

_SEEDS = 2**31 - 1


class SeedSearch(PromptAttack):
    """As many random seeds as other attacks have attempts."""

    modalities = ("text", "text-to-image")
    needs = PromptAttack.needs | {"sampling"}
    space = "seed"
    control = True
    source = "this package; a baseline of Zhang et al. 2024, arXiv:2310.11868"

    def search(
        self, target: GenerativeTarget, batch: PromptBatch, attempts: Attempts, threat: ThreatModel, rng: SampleRng
    ) -> None:
        """All attempts, the first one with the request's own seed; no pass of its own."""
        prompts = batch.requests["prompt"]
        attempts(everyone := attempts.open, [Request(prompts[row]) for row in everyone.tolist()])
        while len(rows := attempts.open):
            rng = rng.fork("next")
            seeds = rng.select(rows).integers((), _SEEDS).tolist()
            asked = [Request(prompts[row], seed=seed) for row, seed in zip(rows.tolist(), seeds, strict=True)]
            attempts(rows, asked)
