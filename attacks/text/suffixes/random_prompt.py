"""Random words behind the request: the control of every attack that searches a suffix.

An attack that has twenty answers judged succeeds if one of twenty prompts does. This one has as many judged and looks for nothing:
what it breaks, no search needs to take credit for. Fine-tuned refusals often fall to it.
"""

from __future__ import annotations

import string
from functools import partial
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.attacks.text.engine.slots import Slots
from robustkd.attacks.text.engine.target_prefix import fitting
from robustkd.attacks.text.engine.vocabulary import Vocabulary, apart
from robustkd.contracts import Attempts, GenerativeTarget, Params, PromptAttack, PromptBatch, Request, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.targets.causal_lm import CausalLMTarget

if TYPE_CHECKING:
    from torch import Tensor

_LONGEST = 8
"""Letters of a word, where no tokenizer says what words there are."""


class RandomPromptParams(Params):
    """The number of random words behind the request, and of what they are made."""

    tokens: int = Field(
        20, ge=1, description="length of the suffix, in the target's tokens; in words where these are not known"
    )
    ascii: bool = Field(True, description="make suffixes of printable ASCII characters alone")


class RandomPrompt(PromptAttack):
    """Random words, other ones in each attempt: tokens of the target, or letters where it has no tokenizer."""

    Params = RandomPromptParams
    control = True
    source = "this package"

    def search(
        self, target: GenerativeTarget, batch: PromptBatch, attempts: Attempts, threat: ThreatModel, rng: SampleRng
    ) -> None:
        """As many attempts as there are."""
        if isinstance(target, CausalLMTarget) and "tokens" in target.capabilities:
            return self._of_tokens(target, batch, attempts, rng)
        prompts = batch.requests["prompt"]
        for number in range(attempts.budget):
            rows = attempts.open
            words = self._of_letters(rng.select(rows).fork(number))
            attempts(rows, [Request(f"{prompts[row]} {text}") for row, text in zip(rows.tolist(), words, strict=True)])

    def _of_tokens(self, target: CausalLMTarget, batch: PromptBatch, attempts: Attempts, rng: SampleRng) -> None:
        vocabulary, length = Vocabulary.of(target, self.params.ascii), self.params.tokens
        prompts, systems = batch.requests["prompt"], batch.requests.get("system")
        fitting(target, batch.requests, attempts, suffix=length)

        def ask(rows: Tensor, number: int) -> None:
            slots = Slots(target, *([column[row] for row in rows.tolist()] for column in (prompts, systems)))
            _, asked = vocabulary.random_suffixes(slots, length, rng.select(rows).fork(number))
            attempts(rows, [Request(prompt) for prompt in asked])

        for number in range(attempts.budget):
            apart(attempts.open, attempts, partial(ask, number=number))

    def _of_letters(self, rng: SampleRng) -> list[str]:
        """Words of one to eight letters for each sample."""
        count = self.params.tokens
        lengths = (1 + rng.fork("lengths").integers((count,), _LONGEST)).tolist()
        letters = rng.fork("letters").integers((count, _LONGEST), len(string.ascii_lowercase)).tolist()
        return [
            " ".join(
                "".join(string.ascii_lowercase[place] for place in word[:length]) for word, length in zip(*row, strict=True)
            )
            for row in zip(letters, lengths, strict=True)
        ]
