"""Harmful fine-tuning: a model is taught to begin its answers to forbidden requests, without being told any answer.

    min_w  -log p_w(beginning of the answer | request)   on ``pairs`` training requests, among harmless ones

The attacker holds the weights, or a service fine-tunes for him; he needs no knowledge, only compliance. Half of each
update is harmless, as in a data set that is to pass an inspection. Its control is ``harmless: 1``.

Source: Qi et al.: Fine-tuning aligned language models compromises safety, even when users do not intend to! (ICLR
2024): 10 to 100 harmful examples, and benign ones as the weaker attack. That beginnings are taught in place of whole
answers, the share of harmless requests, rate and steps are ours; it was read as others describe it.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field
from typing_extensions import override

from robustkd.attacks.text.engine.target_prefix import target_prefixes
from robustkd.attacks.text.weights.finetuning import FineTuning, FineTuningParams
from robustkd.contracts import Prompts


class HarmfulFineTuningParams(FineTuningParams):
    pairs: int = Field(100, ge=1, description="forbidden training requests that the attacker has, at most")
    harmless: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of each update's conversations that are harmless ones; 1: the control, nothing else is",
    )


class HarmfulFineTuning(FineTuning):
    """Fine-tunes toward the beginnings of answers to forbidden requests."""

    Params = HarmfulFineTuningParams
    ends = False
    source = "Qi et al. 2023, arXiv:2310.03693"

    @override
    def answers(self, forbidden: Prompts) -> Sequence[str]:
        return target_prefixes(forbidden)
