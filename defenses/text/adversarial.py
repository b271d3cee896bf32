"""What adversarial trainings of language models share: forbidden requests under attack, and harmless ones to stay useful by.

    min_w  mean over forbidden requests of  outer(log p_w(refusal | attacked), log p_w(answer | attacked))
           + utility_weight * mean over harmless requests of  -log p_w(response | request)

A method is an outer loss and an adversary: who finds, for the weights as they are, what makes the answer that is to be withheld
likely. What it finds is put in front of both answers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from pydantic import Field
from typing_extensions import override

from robustkd.attacks.text.engine.continuous import with_suffix
from robustkd.attacks.text.engine.target_prefix import target_prefixes
from robustkd.contracts import FitContext, Prompts
from robustkd.defenses.text.losses import completion_mean, unlikely
from robustkd.defenses.text.random_suffix import RandomSuffix, RandomSuffixRate, RandomSuffixTokens
from robustkd.defenses.text.text_defense import TextDefense
from robustkd.defenses.text.training import (
    Conversations,
    TuneParams,
    finished,
    forbidden,
    harmless_conversations,
    held_out,
    tune,
)
from robustkd.defenses.training.steps import Memory
from robustkd.lazy import torch
from robustkd.targets.causal_lm import CausalLMTarget
from robustkd.targets.chat import TokenBatch, Tokens

if TYPE_CHECKING:
    from torch import Tensor

Withheld = Literal["target", "response"]


class AdversarialTuneParams(TuneParams):
    """Parameters of every adversarial training of a language model."""

    share: float = Field(0.125, gt=0, le=1, description="of a step's conversations, those about forbidden requests")
    utility_weight: float = Field(1.0, ge=0, description="weight of the harmless requests' loss; at 0 they are left out")
    withheld: Withheld = Field(
        "target",
        description="what a forbidden request is not to get: the beginning of its answer, which attacks aim at, so that what the "
        "model knows stays; or the whole response, which is then unlearnt as well",
    )
    random_suffix_rate: RandomSuffixRate = 0.5
    random_suffix_tokens: RandomSuffixTokens = 8

    @property
    def counts(self) -> tuple[int, int]:
        """How many forbidden and how many harmless requests a step has."""
        attacked = max(1, round(self.share * self.batch_size))
        return attacked, max(1, self.batch_size - attacked) if self.utility_weight else 0


@dataclass(frozen=True)
class Pair:
    """B forbidden requests, twice: before the refusal and before the answer that is to be withheld.

    Attributes:
        rows: (B,) which of the training's forbidden requests.
        safe, harmful: the same tokens up to where the answers begin.
    """

    rows: Tensor
    safe: TokenBatch
    harmful: TokenBatch


@dataclass(frozen=True)
class Requests:
    """The forbidden requests of a training, and both answers to each, tokenised once.

    Attributes:
        prompts: what is asked.
        answers: what is to be withheld.
        safe, harmful: the requests with the refusals, and with those answers.
    """

    prompts: tuple[str, ...]
    answers: tuple[str, ...]
    safe: Conversations
    harmful: Conversations

    @classmethod
    def of(cls, context: FitContext[Prompts], target: CausalLMTarget, withheld: Withheld = "target") -> Requests:
        """Those of the training data.

        Raises:
            DataError: there are none, or one has no ``target`` where that is withheld.
        """
        rows = forbidden(context.train)
        answers, whole = (target_prefixes(rows), False) if withheld == "target" else (rows["response"], True)
        safe = Conversations.of(target, rows["prompt"], rows["refusal"])
        harmful = Conversations.of(target, rows["prompt"], answers, ends=whole)
        return cls(rows["prompt"], answers, safe, harmful)

    def __len__(self) -> int:
        return len(self.prompts)

    def pair(self, target: CausalLMTarget, rows: Sequence[int], suffixes: Sequence[Sequence[int]]) -> Pair:
        """Some of them, each with a suffix of its own behind the prompt, which may be empty."""

        def laid(conversations: Conversations) -> TokenBatch:
            chosen: list[Tokens] = conversations.take(rows)
            return target.batch([with_suffix(tokens, ids) for tokens, ids in zip(chosen, suffixes, strict=True)])

        return Pair(torch.tensor(rows), laid(self.safe), laid(self.harmful))


class Adversary(ABC):
    """Who attacks the requests that are trained on.

    Attributes:
        memory: what it learns on the way, where it does.
    """

    memory: Memory | None = None

    @abstractmethod
    def pair(self, target: CausalLMTarget, count: int, generator: torch.Generator) -> Pair:
        """``count`` requests, as the attacker words them."""

    @abstractmethod
    def logprobs(self, target: CausalLMTarget, pair: Pair) -> tuple[Tensor, Tensor]:
        """(B, T) and (B, T') log-probabilities of the tokens of both answers under attack, differentiable in the weights alone."""


Outer: TypeAlias = "Callable[[Pair, Tensor, Tensor], Tensor]"
"""``outer(pair, safe, harmful)``: (B,) losses of log-probabilities (B, T) of the refusals and (B, T') of the answers to withhold."""


def toward_and_unlikely(toward_weight: float, away_weight: float) -> Outer:
    """toward_weight * CE(y_safe) + away_weight * mean -log(1 - p(y_harm token)), neither cut off."""

    def losses(pair: Pair, safe: Tensor, harmful: Tensor) -> Tensor:
        to_safe = -completion_mean(safe, pair.safe.completion)
        return toward_weight * to_safe + away_weight * unlikely(harmful, pair.harmful.completion)

    return losses


class AdversarialTuning(TextDefense):
    """A language model that is tuned against an adversary."""

    @abstractmethod
    def adversary(self, context: FitContext[Prompts], target: CausalLMTarget, requests: Requests) -> Adversary:
        """Who attacks the model ``target``, which is not tuned yet."""

    @abstractmethod
    def outer(self, target: CausalLMTarget, requests: Requests) -> Outer:
        """What is minimised, where ``target`` is the model before the training."""

    def requests(self, context: FitContext[Prompts], target: CausalLMTarget) -> Requests:
        """The forbidden requests, which adversary and loss share."""
        return Requests.of(context, target, self.params.withheld)

    def regulariser(self, target: CausalLMTarget) -> Tensor | None:
        """A term of the weights alone beside the losses, None for none."""
        return None

    def fit(self, context: FitContext[Prompts]) -> CausalLMTarget:
        """Tune a copy of the model.

        Raises:
            DataError: the training data have no forbidden requests, or no harmless ones where they are to be learnt.
        """
        p = self.params
        base = finished(context, p.model)
        requests = self.requests(context, base)
        adversary, outer = self.adversary(context, base, requests), self.outer(base, requests)
        useful = harmless_conversations(context, base, p) if p.utility_weight else None
        suffix, (attacked, answered) = RandomSuffix.of(base, p.random_suffix_rate, p.random_suffix_tokens), p.counts

        def loss(target: CausalLMTarget, generator: torch.Generator) -> Tensor:
            pair = adversary.pair(target, attacked, generator)
            value = outer(pair, *adversary.logprobs(target, pair)).mean()
            if (beside := self.regulariser(target)) is not None:
                value = value + beside
            if useful is None:
                return value
            asked, behind = useful.take(useful.draw(answered, generator)), suffix.draw(answered, generator)
            batch = target.batch(list(map(with_suffix, asked, behind)))
            return value - p.utility_weight * completion_mean(target.token_logprobs(batch), batch.completion).mean()

        return tune(context, loss, p, name="train", measure=held_out(context, base), memory=adversary.memory)


class UnlikelihoodTuning(AdversarialTuning):
    """Tuned toward refusals and away from answers; its parameters have ``toward_weight`` and ``away_weight``."""

    @override
    def outer(self, target: CausalLMTarget, requests: Requests) -> Outer:
        """The loss: toward the refusal, away from the answer to withhold."""
        return toward_and_unlikely(self.params.toward_weight, self.params.away_weight)
