"""Refusal fine-tuning: a finished model learns to refuse what is forbidden and to answer the rest, on clean text.

    min_w  mean -log p(refusal | forbidden prompt)  and  -log p(response | harmless prompt)

The control of every adversarial training. A model that has only seen clean requests falls to random words behind them, so
by default half of all requests have such a suffix: what remains open then is open to attacks, not to noise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.attacks.text.engine.continuous import with_suffix
from robustkd.contracts import FitContext, Prompts
from robustkd.defenses.text.random_suffix import RandomSuffix, RandomSuffixRate, RandomSuffixTokens
from robustkd.defenses.text.text_defense import TextDefense
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
from robustkd.defenses.training.steps import Memory
from robustkd.targets.causal_lm import CausalLMTarget
from robustkd.targets.chat import TokenBatch

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


class RefusalSFT(TextDefense):
    """A language model fine-tuned to refuse."""

    Params = RefusalSFTParams
    source = "no paper: supervised fine-tuning, the control"

    def fit(self, context: FitContext[Prompts]) -> CausalLMTarget:
        """Fine-tune.

        Raises:
            DataError: the training data have nothing to refuse, or nothing to answer.
        """
        start = finished(context, self.params.model)
        loss = self.loss(context, start)
        return tune(context, loss, self.params, name="tune", measure=held_out(context, start), memory=loss.memory)

    def loss(self, context: FitContext[Prompts], start: CausalLMTarget) -> RefusalLoss:
        """What is minimised, where ``start`` is the model before."""
        return RefusalLoss(context, start, self.params)


class RefusalLoss:
    """Cross entropy of refusals and of harmless answers, a ``TextLoss``.

    Args:
        context: the data.
        start: whose tokens are used.
        params: how many of each.

    Attributes:
        memory: what it learns on the way, where it does.
    """

    memory: Memory | None = None

    def __init__(self, context: FitContext[Prompts], start: CausalLMTarget, params: RefusalSFTParams) -> None:
        refused, self._answers = forbidden(context.train), harmless_conversations(context, start, params)
        self._refusals = Conversations.of(start, refused["prompt"], refused["refusal"])
        self._suffix = RandomSuffix.of(start, params.random_suffix_rate, params.random_suffix_tokens)
        self._size = params.batch_size
        self._count = min(max(round(params.share * params.batch_size), 1), params.batch_size - 1)

    def __call__(self, target: CausalLMTarget, generator: torch.Generator) -> Tensor:
        """The loss of a step."""
        items = self._refusals.take(self._refusals.draw(self._count, generator))
        items += self._answers.take(self._answers.draw(self._size - self._count, generator))
        batch = target.batch(list(map(with_suffix, items, self._suffix.draw(len(items), generator))))
        return self.of(target, batch, self._count, generator)

    def of(self, target: CausalLMTarget, batch: TokenBatch, refused: int, generator: torch.Generator) -> Tensor:
        """The mean over all answers' tokens; the first ``refused`` rows are forbidden requests."""
        return cross_entropy(target, batch)
