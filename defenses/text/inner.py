"""The inner maximisation of continuous adversarial training: the embeddings of the prompt, moved within a ball around each token.

    d* = argmax_{||d_token|| <= eps * mean embedding norm} log p_w(answer to withhold | embedded prompt + d)

It is the ascent of the attack ``embedding``, begun at the prompt itself, with the network in evaluation mode (no dropout) and the
gradient of d alone: none of it reaches the weights, which the authors' code let happen until August 2025. The best d is kept, not
the last. Random words behind a share of the prompts are moved like the prompt's own: without them the training never sees a
prompt as long as one with an attacker's suffix.

Source: Xhonneux et al.: Efficient adversarial training in LLMs with continuous attacks (NeurIPS 2024), section 3 and algorithm 1; the
random words are ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from pydantic import Field
from typing_extensions import override

from robustkd.attacks.text.engine.continuous import Direction, EmbeddingPGD, Norm
from robustkd.contracts import FitContext, Params, Prompts
from robustkd.defenses.text.adversarial import AdversarialTuneParams, AdversarialTuning, Adversary, Pair, Requests
from robustkd.defenses.text.random_suffix import RandomSuffix
from robustkd.lazy import F
from robustkd.targets.causal_lm import CausalLMTarget
from robustkd.targets.chat import TokenBatch

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class InnerParams(Params):
    """How the embeddings to train on are found."""

    eps: float = Field(
        0.05,
        ge=0,
        description="how far each token may be moved, relative to the mean embedding norm; 0: a control without an attack",
    )
    norm: Norm = Field("l2", description="of one token's perturbation; linf: the cube inside that ball")
    steps: int = Field(10, ge=1, description="steps for each example")
    step_size: float = Field(0.25, gt=0, description="length of every token's step, relative to eps")
    direction: Direction = Field("sign", description="step along the sign of the gradient, or along the gradient")


class ContinuousParams(AdversarialTuneParams):
    """Parameters of the trainings against moved embeddings."""

    inner: InnerParams = Field(default_factory=InnerParams, description="the attack that is trained against")


class EmbeddingAdversary(Adversary):
    """Moves the embeddings of the prompts.

    Args:
        requests: what is asked.
        suffix: behind some of them.
        inner: the ascent.
    """

    def __init__(self, requests: Requests, suffix: RandomSuffix, inner: InnerParams) -> None:
        self.inner, self._requests, self._suffix = inner, requests, suffix

    @classmethod
    def under(cls, target: CausalLMTarget, requests: Requests, params: ContinuousParams) -> Self:
        """The adversary that a defense's parameters describe."""
        return cls(requests, RandomSuffix.of(target, params.random_suffix_rate, params.random_suffix_tokens), params.inner)

    def pair(self, target: CausalLMTarget, count: int, generator: torch.Generator) -> Pair:
        """Draw requests, each with random words behind it as often as the parameters say."""
        return self._requests.pair(target, self._requests.safe.draw(count, generator), self._suffix.draw(count, generator))

    def logprobs(self, target: CausalLMTarget, pair: Pair) -> tuple[Tensor, Tensor]:
        """See ``Adversary``: the same perturbation in front of both answers."""
        if not self.inner.eps:
            return target.token_logprobs(pair.safe), target.token_logprobs(pair.harmful)
        worst = self.worst(target, pair)
        return self.logprobs_at(target, pair.safe, worst), self.logprobs_at(target, pair.harmful, worst)

    def worst(self, target: CausalLMTarget, pair: Pair) -> Tensor:
        """(B, T, D) the perturbations that make the answers to withhold likeliest, without a graph."""
        p = self.inner
        pgd = EmbeddingPGD(p.eps, p.steps, p.step_size * p.eps, p.norm, p.direction)
        return pgd(target, pair.harmful, pair.harmful.prompt).d

    def logprobs_at(self, target: CausalLMTarget, batch: TokenBatch, worst: Tensor) -> Tensor:
        """(B, T) log-probabilities of the answers in ``batch`` under ``worst``, whose T may be another: it ends with the prompts."""
        embedded = target.embed(batch.ids)
        d = F.pad(worst, (0, 0, 0, embedded.shape[1] - worst.shape[1]))
        return target.token_logprobs(batch, (embedded + d).to(embedded.dtype))


class EmbeddingTuning(AdversarialTuning):
    """A language model that is tuned under an attack on its embeddings."""

    @override
    def adversary(self, context: FitContext[Prompts], target: CausalLMTarget, requests: Requests) -> Adversary:
        """The attack on the embeddings of the prompts."""
        return EmbeddingAdversary.under(target, requests, self.params)
