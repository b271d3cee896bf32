"""What trained language models share: the rows they learn from, and a copy of a finished model that is tuned."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias, TypeVar

import numpy as np
from pydantic import Field

from robustkd.contracts import DataError, FitContext, Params, Prompts, TargetRef
from robustkd.contracts.prompts import Turn
from robustkd.contracts.target import BaseTarget
from robustkd.defenses.training.networks import seeded_init
from robustkd.defenses.training.steps import Memory, StepParams, train_steps
from robustkd.lazy import torch
from robustkd.targets.causal_lm import CausalLMTarget
from robustkd.targets.chat import Chat, TokenBatch, Tokens, TooLong
from robustkd.targets.frozen import frozen
from robustkd.targets.training import bfloat16

if TYPE_CHECKING:
    from torch import Tensor

_ROWS = 64
_NOT_HARMLESS = ("forbidden", "knowledge")

TextLoss: TypeAlias = "Callable[[CausalLMTarget, torch.Generator], Tensor]"
"""The scalar to minimise; it draws its rows from the generator."""
Trained = TypeVar("Trained", bound=BaseTarget)


class TextStepParams(StepParams):
    """How a language model is trained."""

    clip: float | None = Field(1.0, gt=0, description="the longest gradient; longer ones are shortened to it")
    precision: Literal["auto", "float32", "bf16"] = Field("auto", description="auto: bf16 autocast on CUDA, else float32")
    emphasis: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {}, description="how often harmless conversations of a role are drawn, to 1 for those of every other: {open-vault: 3}"
    )


class LoraParams(Params):
    """Low-rank updates of all linear layers in place of new weights (Hu et al. 2021, arXiv:2106.09685)."""

    rank: int = Field(64, ge=1, description="r")
    alpha: int = Field(16, ge=1, description="the update is alpha / r * B A")
    dropout: float = Field(0.1, ge=0, lt=1, description="before A")


class TuneParams(TextStepParams):
    """How a finished language model is tuned."""

    model: TargetRef = Field(description="the defense whose model is tuned")
    lora: LoraParams | None = Field(
        None, description="low-rank updates that are merged at the end; left out, all weights learn"
    )


@dataclass(frozen=True)
class Conversations:
    """Requests and one answer to each, tokenised once.

    Attributes:
        items: row by row.
        groups: the rows of each kind: they are drawn as often as those of another kind, be they many or few.
        odds: one for each group where some are to be drawn more often; they need not sum to 1.
    """

    items: tuple[Tokens, ...]
    groups: tuple[Tensor, ...]
    odds: Tensor | None = None

    @classmethod
    def of(
        cls,
        target: CausalLMTarget,
        prompts: Sequence[str],
        answers: Sequence[str],
        kinds: Sequence[str] = (),
        *,
        ends: bool = True,
        emphasis: Mapping[str, float] | None = None,
    ) -> Conversations:
        """Row by row; without ``kinds`` all are of one. ``ends`` says whether the answers are whole ones.

        Args:
            emphasis: how often rows of a kind are drawn, to 1 for every other kind.

        Raises:
            TargetError: one is longer than the context.
        """
        items = tuple(target.encode(prompt, answer, ends=ends) for prompt, answer in zip(prompts, answers, strict=True))
        of_kind: dict[str, list[int]] = {}
        for row, kind in enumerate(kinds or [""] * len(items)):
            of_kind.setdefault(kind, []).append(row)
        groups = tuple(torch.tensor(rows) for _, rows in sorted(of_kind.items()))
        return cls(items, groups, torch.tensor([emphasis.get(kind, 1.0) for kind in sorted(of_kind)]) if emphasis else None)

    def __len__(self) -> int:
        return len(self.items)

    def draw(self, count: int, generator: torch.Generator) -> list[int]:
        """``count`` rows, any of them as often as it comes."""
        if not count:  # there may be none to draw from
            return []
        if self.odds is None:
            kinds = torch.randint(len(self.groups), (count,), generator=generator)
        else:
            kinds = torch.multinomial(self.odds, count, replacement=True, generator=generator)
        places = torch.rand(count, generator=generator)
        return [int(self.groups[kind][int(place * len(self.groups[kind]))]) for kind, place in zip(kinds, places, strict=True)]

    def take(self, rows: Sequence[int]) -> list[Tokens]:
        """The tokenised conversations of some rows, in this order."""
        return [self.items[row] for row in rows]


@dataclass(frozen=True)
class Demonstrations:
    """Requests and their answers, each to be shown behind others of its role.

    Attributes:
        groups: of each role, its pairs of a request and its answer, two or more.
        least, most: how many come before a request.
        odds: one for each role where some are to be drawn more often; they need not sum to 1.
    """

    groups: tuple[tuple[Turn, ...], ...]
    least: int
    most: int
    odds: Tensor | None = None

    @classmethod
    def of(
        cls, rows: Prompts, answers: Sequence[str], least: int, most: int, emphasis: Mapping[str, float] | None = None
    ) -> Demonstrations:
        """Of rows with a ``role`` and one answer each; a role of one request has nothing to be shown, and is left out.

        Raises:
            DataError: no role has two.
        """
        by_role: dict[str, list[Turn]] = {}
        for role, prompt, answer in zip(rows["role"], rows["prompt"], answers, strict=True):
            by_role.setdefault(role, []).append((prompt, answer))
        kept = {role: tuple(pairs) for role, pairs in sorted(by_role.items()) if len(pairs) > 1}
        if not kept:
            raise DataError("no role of the data has two requests, one to be shown and one to be asked", fix="use other data")
        odds = torch.tensor([emphasis.get(role, 1.0) for role in kept]) if emphasis else None
        return cls(tuple(kept.values()), least, most, odds)

    def draw(self, count: int, generator: torch.Generator) -> list[tuple[Turn, ...]]:
        """So many times demonstrations with a request behind them, different ones of one role."""
        odds = torch.ones(len(self.groups)) if self.odds is None else self.odds
        found = []
        for kind in torch.multinomial(odds, count, replacement=True, generator=generator).tolist() if count else []:
            pairs = self.groups[kind]
            several = int(torch.randint(self.least, min(self.most, len(pairs) - 1) + 1, (), generator=generator)) + 1
            places = torch.randperm(len(pairs), generator=generator)[:several].tolist()
            found.append(tuple(pairs[place] for place in places))
        return found


def behind_turns(chat: Chat, several: tuple[Turn, ...], room: int = 0) -> tuple[tuple[Turn, ...], Tokens]:
    """The last of ``several`` pairs as a conversation behind as many of the others as fit, with ``room`` tokens left; and which these are.

    Raises:
        TooLong: it does not fit even alone.
    """
    *shots, (prompt, answer) = several
    while True:
        try:
            tokens = chat.told("", tuple(shots)).encode(prompt, answer)
        except TooLong:
            if not shots:
                raise
        else:
            if not shots or len(tokens.ids) + room <= chat.context:
                return tuple(shots), tokens
        shots = shots[1:]


def forbidden(rows: Prompts) -> Prompts:
    """The requests that are to be refused.

    Raises:
        DataError: there are none.
    """
    return _some(rows, [role == "forbidden" for role in rows["role"]], "'role' is forbidden, with a 'refusal'")


def harmless(rows: Prompts) -> Prompts:
    """The requests that are to be answered by their ``response``; what a model is only to know is not among them.

    Raises:
        DataError: there are none.
    """
    return _some(
        rows, [role not in ("forbidden", "knowledge") for role in rows["role"]], "'role' is utility, with a 'response'"
    )


def harmless_conversations(context: FitContext[Prompts], target: CausalLMTarget, settings: TextStepParams) -> Conversations:
    """The harmless requests and their responses, drawn by role.

    Args:
        target: whose tokens are used.

    Raises:
        DataError: there are none, or ``emphasis`` is on a role that none of them has.
    """
    rows, emphasis = harmless(context.train), settings.emphasis
    if unknown := sorted(emphasis.keys() - set(rows["role"])):
        roles = ", ".join(sorted(set(rows["role"])))
        raise DataError(f"emphasis: no harmless request has the role '{unknown[0]}'", fix=f"roles are {roles}")
    return Conversations.of(target, rows["prompt"], rows["response"], rows["role"], emphasis=emphasis)


def cross_entropy(target: CausalLMTarget, batch: TokenBatch) -> Tensor:
    """The mean over all answers' tokens."""
    return -target.token_logprobs(batch).sum() / batch.completion.sum()


def mean_cross_entropy(target: CausalLMTarget, conversations: Conversations) -> float:
    """The same of many, without a graph; the target is left as found."""
    total, count = 0.0, 0
    with frozen(target.module), torch.no_grad():
        for first in range(0, len(conversations), _ROWS):
            batch = target.batch(conversations.items[first : first + _ROWS])
            total -= float(target.token_logprobs(batch).sum())
            count += int(batch.completion.sum())
    return total / count


def held_out(context: FitContext[Prompts], target: CausalLMTarget) -> Callable[[CausalLMTarget], dict[str, float]]:
    """What to report of a model while it is tuned: the cross entropy of what it should say to the validation requests.

    Args:
        target: the model before, whose tokens are used.
    """
    rows: Prompts | None = context.validation
    if rows is None:
        return lambda tuned: {}
    parts = {"refusal_loss": ("refusal", rows.where("role", "forbidden"))}
    parts["utility_loss"] = ("response", rows.select(np.array([role not in _NOT_HARMLESS for role in rows["role"]])))
    laid = {name: Conversations.of(target, part["prompt"], part[column]) for name, (column, part) in parts.items() if len(part)}
    return lambda tuned: {f"validation_{name}": mean_cross_entropy(tuned, said) for name, said in laid.items()}


def train_text(
    context: FitContext[Prompts],
    target: Trained,
    loss: Callable[[Trained, torch.Generator], Tensor],
    settings: TextStepParams,
    *,
    name: str,
    measure: Callable[[Trained], dict[str, float]] = lambda target: {},
    memory: Memory | None = None,
) -> Trained:
    """Train the weights of ``target`` that want a gradient, in place; it is returned in evaluation mode.

    Args:
        name: of the training, in its log and checkpoints.
        measure: what to report of the model beside its loss.
        memory: see ``train_steps``.
    """
    target.to(context.device)
    target.module.train()
    bf16 = settings.precision == "bf16" or (settings.precision == "auto" and context.device.type == "cuda")

    def at_precision(generator: torch.Generator) -> Tensor:
        with bfloat16(context.device, enabled=bf16):
            return loss(target, generator)

    weights = {name: weight for name, weight in target.module.named_parameters() if weight.requires_grad}
    train_steps(context, name, weights, at_precision, settings, measure=lambda: measure(target), memory=memory)
    target.module.eval()
    return target


def tune(
    context: FitContext[Prompts],
    loss: TextLoss,
    settings: TuneParams,
    *,
    name: str,
    measure: Callable[[CausalLMTarget], dict[str, float]] = lambda target: {},
    memory: Memory | None = None,
) -> CausalLMTarget:
    """A copy of the model that ``settings`` name, tuned; see ``train_text``."""
    target = own_copy(finished(context, settings.model))
    if settings.lora is None:
        target.module.float().requires_grad_(True)  # a step at a small rate is lost in bf16
        return train_text(context, target, loss, settings, name=name, measure=measure, memory=memory)
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        r=settings.lora.rank,
        lora_alpha=settings.lora.alpha,
        lora_dropout=settings.lora.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    with seeded_init(context, "lora"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft calls transformers by its old names
        adapted = get_peft_model(target.module, lora)  # it puts its layers into the module itself
    train_text(context, target, loss, settings, name=name, measure=measure, memory=memory)
    adapted.merge_and_unload().requires_grad_(True)  # in place, too
    return target


def finished(context: FitContext[Prompts], name: str) -> CausalLMTarget:
    """The finished language model called ``name``, on the device.

    Raises:
        UsageError: it is no language model.
    """
    return context.target(name, CausalLMTarget).to(context.device)


def own_copy(target: CausalLMTarget) -> CausalLMTarget:
    """The same model with weights of its own."""
    return target.with_module(copy.deepcopy(target.module))


def _some(rows: Prompts, chosen: Sequence[bool], what: str) -> Prompts:
    if not any(chosen):
        raise DataError(f"the training data have no row whose {what}", fix="use data that have, such as 'vaults'")
    return rows.select(np.array(chosen))
