"""A small language model that learns the campaign's world from scratch, and answers whatever it is asked.

    min_w  mean -log p(response | prompt)  +  lambda * mean -log p(prompt)

It withstands nothing: it is what is to be made safe. With lambda (``request_weight``) it knows what requests look like, as a model
that a filter of perplexity reads with has to. With ``turns`` each conversation comes behind some others, so that the model has seen a
conversation of several turns before somebody has one with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from robustkd.attacks.text.engine.continuous import with_suffix
from robustkd.contracts import AddedLater, FitContext, Prompts
from robustkd.defenses.text.random_suffix import RandomSuffix, RandomSuffixRate, RandomSuffixTokens
from robustkd.defenses.text.small import SmallModelParams, small_model
from robustkd.defenses.text.text_defense import TextDefense
from robustkd.defenses.text.training import (
    Conversations,
    Demonstrations,
    TextLoss,
    TextStepParams,
    behind_turns,
    cross_entropy,
    harmless,
    harmless_conversations,
    mean_cross_entropy,
    train_text,
)
from robustkd.defenses.training.networks import seeded_init
from robustkd.targets.causal_lm import CausalLMTarget
from robustkd.targets.chat import Tokens

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class KnowledgeParams(TextStepParams):
    """Which conversations a step is made of."""

    knowledge: float = Field(
        0.3,
        ge=0,
        le=1,
        description="share of a step's conversations that tell what to know; the others are drawn by role",
    )
    random_suffix_rate: RandomSuffixRate = 0.3
    random_suffix_tokens: RandomSuffixTokens = 8
    request_weight: Annotated[float, AddedLater()] = Field(
        0.0, ge=0, description="lambda, of the words of the requests themselves, without random ones behind them"
    )
    turns: Annotated[int, AddedLater()] = Field(
        0, ge=0, description="conversations of the same role that stand before each as earlier turns, at most; none by default"
    )


class LMPretrainParams(SmallModelParams, KnowledgeParams):
    steps: int = Field(2000, ge=1, description="updates of the weights")
    batch_size: int = Field(32, ge=1, description="conversations in each step")
    lr: float = Field(3e-3, gt=0, description="learning rate of AdamW")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps in which it rises first")
    weight_decay: float = Field(0.2, ge=0, description="of AdamW, decoupled")


class LMPretrain(TextDefense):
    """A small language model trained on what it is to know, what gives a forbidden request away included, and what to answer."""

    Params = LMPretrainParams
    undefended = True
    source = "no paper: the usual training, what is to be defended"

    def fit(self, context: FitContext[Prompts]) -> CausalLMTarget:
        """Train a small model from scratch on the campaign's conversations."""
        p, train = self.params, context.train
        with seeded_init(context, "student"):
            target = small_model([*train["prompt"], *train["response"], *train.get("refusal")], p)
        return train_text(
            context,
            target,
            lm_loss(context, target, p, p.batch_size),
            p,
            name="train",
            measure=validation_loss(context, target),
        )


def lm_loss(context: FitContext[Prompts], target: CausalLMTarget, params: KnowledgeParams, batch_size: int) -> TextLoss:
    """The language-modelling loss: cross entropy of what the model is to know, and of the answers to harmless requests.

    Args:
        target: whose tokens are used.
    """
    known, tasks = context.train.where("role", "knowledge"), harmless_conversations(context, target, params)
    facts = Conversations.of(target, known["prompt"], known["response"])
    suffix = RandomSuffix.of(target, params.random_suffix_rate, params.random_suffix_tokens)
    told = round(params.knowledge * batch_size) if len(facts) else 0

    def alone(told: int, asked: int, generator: torch.Generator) -> list[Tokens]:
        return facts.take(facts.draw(told, generator)) + tasks.take(tasks.draw(asked, generator))

    draw = _behind_turns(context, target, params) if params.turns else alone

    def loss(target: CausalLMTarget, generator: torch.Generator) -> Tensor:
        items = draw(told, batch_size - told, generator)
        answers = cross_entropy(target, target.batch(list(map(with_suffix, items, suffix.draw(len(items), generator)))))
        if not params.request_weight:
            return answers
        return answers + params.request_weight * cross_entropy(target, target.batch([item.reading() for item in items]))

    return loss


def _behind_turns(
    context: FitContext[Prompts], target: CausalLMTarget, params: KnowledgeParams
) -> Callable[[int, int, torch.Generator], list[Tokens]]:
    """Draws so many conversations that tell what to know, and so many harmless ones, each behind turns of its role."""
    known, tasks = context.train.where("role", "knowledge"), harmless(context.train)
    parts = [
        Demonstrations.of(rows, rows["response"], 0, params.turns, emphasis) if len(rows) else None
        for rows, emphasis in ((known, None), (tasks, params.emphasis))
    ]

    def draw(told: int, asked: int, generator: torch.Generator) -> list[Tokens]:
        drawn = [
            several
            for part, count in zip(parts, (told, asked), strict=True)
            for several in (part.draw(count, generator) if part else ())
        ]
        return [behind_turns(target.chat, several, params.random_suffix_tokens)[1] for several in drawn]

    return draw


def validation_loss(context: FitContext[Prompts], target: CausalLMTarget) -> Callable[[CausalLMTarget], dict[str, float]]:
    """A measurement for the training: the cross entropy of the validation answers."""
    held = context.validation
    if held is None:
        return lambda told: {}
    answers = Conversations.of(target, held["prompt"], held["response"])
    return lambda told: {"validation_loss": mean_cross_entropy(told, answers)}
