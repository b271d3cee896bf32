"""A copy of a model is fine-tuned for an attacker, who asks it after some of the updates.

The attacker holds the weights, so no budget limits him but his own: how many pairs of a request and an answer he has,
and how many updates he makes. An attempt is the model after a number of updates, so the curve over attempts is the
one over ``steps``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import Field, field_validator
from typing_extensions import override

from robustkd.attacks.text.engine.training_requests import Kind, answered
from robustkd.attacks.text.weights.weight_attack import WeightAttack
from robustkd.contracts import DataError, Params, Prompts, UsageError
from robustkd.contracts.random import SampleRng
from robustkd.lazy import nn, torch
from robustkd.targets import recording_gradients
from robustkd.targets.causal_lm import CausalLMTarget
from robustkd.targets.chat import Tokens, TooLong
from robustkd.targets.training import adamw, fit

if TYPE_CHECKING:
    from torch import Tensor


class FineTuningParams(Params):
    """What an attacker fine-tunes on, and for how long."""

    steps: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (5, 10, 25, 50, 100),
        min_length=1,
        description="updates of the weights after which the model is asked, one attempt each",
    )
    pairs: int = Field(16, ge=1, description="forbidden training requests with answers that the attacker has, at most")
    harmless: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of each update's conversations that are harmless ones; 1: the control, nothing else is",
    )
    batch_size: int = Field(8, ge=1, description="conversations in each update")
    lr: float = Field(1e-4, gt=0, description="learning rate of AdamW, constant")

    @field_validator("steps")
    @classmethod
    def _rising(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        if list(steps) != sorted(set(steps)):
            raise ValueError("give rising numbers of updates, each once")
        return steps


class FineTuning(WeightAttack):
    """Fine-tunes a copy of the model on requests of the training data, and asks it those that are attacked.

    Attributes:
        ends: whether the answers that are learnt are whole ones.
        checkpoints: the weights after each number of updates, once it is fitted.
    """

    Params = FineTuningParams
    gradients = True
    ends: ClassVar[bool] = True
    version = "2"  # 1 left a head as it was that shares its table with the embedding

    def __init__(self, params: Any = None) -> None:
        super().__init__(params)
        self.checkpoints: tuple[Mapping[str, Tensor], ...] | None = None

    @override
    def most_attempts(self, allowed: int) -> int:
        return min(allowed, len(self.params.steps))

    @abstractmethod
    def answers(self, forbidden: Prompts) -> Sequence[str]:
        """What the copy learns to answer to forbidden training requests."""

    @override
    def fit(self, target: CausalLMTarget, requests: Prompts, rng: SampleRng) -> Self:
        """A copy of this attack that holds the weights after each number of updates.

        Raises:
            DataError: the training requests are of no such kind, or none fits into the context.
        """
        p = self.params
        parts: list[tuple[list[Tokens], int]] = []
        if count := round((1 - p.harmless) * p.batch_size):
            rows = chosen_rows(target, requests, "forbidden", p.pairs, rng)
            parts.append((_laid(target, rows["prompt"], self.answers(rows), self.ends), count))
        if p.batch_size > count:
            rows = chosen_rows(target, requests, "harmless", None, rng)
            parts.append((_laid(target, rows["prompt"], rows["response"], True), p.batch_size - count))
        draws = rng.select(torch.tensor([0], device=rng.index.device))
        holding = copy(self)
        with recording_gradients():
            holding.checkpoints = tuple(_fine_tuned(target, parts, p, draws))
        return holding

    @override
    def weights(self, target: CausalLMTarget) -> Iterable[Mapping[str, Tensor]]:
        """Those after each number of updates."""
        if self.checkpoints is None:
            raise UsageError("a model must be fine-tuned before it is asked", fix="call fit, and use what it returns")
        return self.checkpoints


def chosen_rows(target: CausalLMTarget, requests: Prompts, kind: Kind, most: int | None, rng: SampleRng) -> Prompts:
    """Training requests that are ``forbidden`` or ``harmless`` and fit into the context, in a random order, ``most`` of them.

    Raises:
        DataError: there is none.
    """
    wanted = set(answered(requests, kind))
    order = rng.fork(kind).uniform((1,)).squeeze(1).cpu().argsort(stable=True).tolist()
    rows = [row for row in order if row in wanted and _fits(target, requests["prompt"][row], requests["response"][row])][:most]
    if not rows:
        raise DataError(
            f"there is no {kind} training request with a response, on which an attacker could fine-tune",
            fix="use data whose training part has some, such as 'vaults'; those that are attacked do not count",
        )
    return requests.select(np.array(rows))


def _fits(target: CausalLMTarget, prompt: str, response: str) -> bool:
    try:
        return bool(target.encode(prompt, response).ids)
    except TooLong:
        return False


def _laid(target: CausalLMTarget, prompts: Sequence[str], answers: Sequence[str], ends: bool) -> list[Tokens]:
    return [target.encode(prompt, answer, ends=ends) for prompt, answer in zip(prompts, answers, strict=True)]


def _fine_tuned(
    target: CausalLMTarget, parts: Sequence[tuple[list[Tokens], int]], p: FineTuningParams, rng: SampleRng
) -> Iterator[dict[str, Tensor]]:
    """The weights after each of ``p.steps``, on the CPU."""
    copied = target.with_weights({})
    copied.module.float().requires_grad_(True)
    optimiser = adamw(copied.module.parameters(), p.lr)

    def losses(first: int, last: int) -> Iterator[Tensor]:
        for step in range(first, last):
            items = [
                several[place]
                for number, (several, count) in enumerate(parts)
                for place in rng.fork(f"{step}/{number}").integers((count,), len(several))[0].tolist()
            ]
            batch = copied.batch(items)
            yield -copied.token_logprobs(batch).sum() / batch.completion.sum()

    for first, last in zip((0, *p.steps), p.steps, strict=False):
        fit(optimiser, losses(first, last), lambda step: p.lr)
        yield _weights(copied.module)


def _weights(module: nn.Module) -> dict[str, Tensor]:
    """Copies on the CPU, by all names: a table that two layers share has two, and each layer is given it."""
    named = dict(module.named_parameters(remove_duplicate=False))
    copies = {weight: weight.detach().cpu().clone() for weight in named.values()}
    return {name: copies[weight] for name, weight in named.items()}
