"""The request as it is: what every other attack is compared with."""

from __future__ import annotations

from robustkd.contracts import Asked, Attempts, PromptAttack, PromptBatch, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.targets.causal_lm import CausalLMTarget


class Direct(PromptAttack):
    """Asks once, in the request's own words."""

    gradients = False
    iterative = False

    def search(
        self, target: CausalLMTarget, batch: PromptBatch, attempts: Attempts, threat: ThreatModel, rng: SampleRng
    ) -> None:
        """One attempt."""
        rows = attempts.open
        prompts = batch.requests["prompt"]
        attempts(rows, [Asked(prompts[row]) for row in rows.tolist()])
