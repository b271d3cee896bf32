"""Random words behind the request: the control of every attack that searches a suffix.

An attack that has twenty answers judged succeeds if one of twenty prompts does. This one has as many judged and looks for nothing:
what it breaks, no search needs to take credit for. Fine-tuned refusals often fall to it.
"""

from __future__ import annotations

from pydantic import Field

from robustkd.attacks.text.engine.slots import Slots
from robustkd.attacks.text.engine.vocabulary import Vocabulary
from robustkd.contracts import Asked, Attempts, Params, PromptAttack, PromptBatch, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.targets.causal_lm import CausalLMTarget


class RandomPromptParams(Params):
    """The number of random words behind the request, and of what they are made."""

    tokens: int = Field(20, ge=1, description="length of the suffix, in the target's tokens")
    ascii: bool = Field(True, description="make suffixes of printable ASCII characters alone")


class RandomPrompt(PromptAttack[CausalLMTarget]):
    """Random words, other ones in each attempt."""

    Params = RandomPromptParams
    needs = PromptAttack.needs | {"tokens"}
    control = True
    source = "this package"

    def search(
        self, target: CausalLMTarget, batch: PromptBatch, attempts: Attempts, threat: ThreatModel, rng: SampleRng
    ) -> None:
        """As many attempts as there are."""
        vocabulary = Vocabulary.of(target, self.params.ascii)
        prompts, systems = batch.requests["prompt"], batch.requests.get("system")
        for number in range(attempts.budget):
            rows = attempts.open
            if not len(rows):
                return
            slots = Slots(target, *([column[row] for row in rows.tolist()] for column in (prompts, systems)))
            _, asked = vocabulary.random_suffixes(slots, self.params.tokens, rng.select(rows).fork(number))
            attempts(rows, [Asked(prompt) for prompt in asked])
