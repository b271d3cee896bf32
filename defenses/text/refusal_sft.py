"""Refusal fine-tuning: a finished model learns to refuse what is forbidden and to answer the rest, on clean text.

    min_w  mean -log p(refusal | forbidden prompt)  and  -log p(response | harmless prompt)

The control of every adversarial training. A model that has only seen clean requests falls to random words behind them, so
by default half of all requests have such a suffix: what remains open then is open to attacks, not to noise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from robustkd.attacks.text.engine.continuous import with_suffix
from robustkd.contracts import Defense, FitContext, Modality, Prompts
from robustkd.defenses.text.random_suffix import RandomSuffix, RandomSuffixRate, RandomSuffixTokens
from robustkd.defenses.text.training import (
    Conversations,
    TuneParams,
    cross_entropy,
    finished,
    forbidden,
    harmless_conversations,
    held_out,
    tune,
)
from robustkd.targets.causal_lm import CausalLMTarget

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class RefusalSFTParams(TuneParams):
    steps: int = Field(250, ge=1, description="updates of the weights")
    batch_size: int = Field(32, ge=2, description="conversations in each step")
    lr: float = Field(7e-4, gt=0, description="learning rate of AdamW")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps in which it rises first")
    share: float = Field(0.4, gt=0, lt=1, description="of a step's conversations, those about forbidden requests")
    random_suffix_rate: RandomSuffixRate = 0.5
    random_suffix_tokens: RandomSuffixTokens = 8


class RefusalSFT(Defense):
    """A language model fine-tuned to refuse."""

    Params = RefusalSFTParams
    modalities: ClassVar[tuple[Modality, ...]] = ("text",)
    source = "no paper: supervised fine-tuning, the control"

    def fit(self, context: FitContext[Prompts]) -> CausalLMTarget:
        """Fine-tune.

        Raises:
            DataError: the training data have nothing to refuse, or nothing to answer.
        """
        p, start = self.params, finished(context, self.params.model)
        refused, answers = forbidden(context.train), harmless_conversations(context, start, p)
        refusals = Conversations.of(start, refused["prompt"], refused["refusal"])
        suffix = RandomSuffix.of(start, p.random_suffix_rate, p.random_suffix_tokens)
        count = min(max(round(p.share * p.batch_size), 1), p.batch_size - 1)

        def loss(target: CausalLMTarget, generator: torch.Generator) -> Tensor:
            items = refusals.take(refusals.draw(count, generator)) + answers.take(answers.draw(p.batch_size - count, generator))
            return cross_entropy(target, target.batch(list(map(with_suffix, items, suffix.draw(len(items), generator)))))

        return tune(context, loss, p, name="tune", measure=held_out(context, start))
