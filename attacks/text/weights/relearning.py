"""Relearning: a few pairs of forbidden requests and their answers, and some updates on them, bring the others back.

    min_w  -log p_w(response | request)   on ``pairs`` training requests; then the other requests are asked

The attacker holds the weights and some of what was to be withheld. What returns on requests that were not among them
was hidden, not erased; what does not return may still do so with more updates. It is the question that unlearning is
asked, and a refusal, too. Its control is ``harmless: 1``: as many updates on harmless requests, which undo some
refusals by themselves.

Source: Lynch et al.: Eight methods to evaluate robust unlearning in LLMs (2024), its relearning; the number of pairs,
rate and steps are ours, and it was read as others describe it.
"""

from __future__ import annotations

from collections.abc import Sequence

from typing_extensions import override

from robustkd.attacks.text.weights.finetuning import FineTuning
from robustkd.contracts import Prompts


class Relearning(FineTuning):
    """Fine-tunes on a few forbidden requests and their true answers."""

    source = "Lynch et al. 2024, arXiv:2402.16835"

    @override
    def answers(self, forbidden: Prompts) -> Sequence[str]:
        return forbidden["response"]
