"""A guard around a model that answers: it holds requests back, or shows the model another text than the one that was sent.

Who attacks such a model without knowing the guard finds prompts for the model alone. ``BehindGuards`` is the model as somebody who
knows the guards would search on it: every guard says what the model sees of a prompt, and how far a prompt is from passing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic

import numpy as np
from typing_extensions import TypeVar, override

from robustkd.contracts import Card, Filtered, GenerativeTarget, Params, Request, TargetError, Unanswered
from robustkd.contracts.json_value import JsonObject
from robustkd.contracts.target import of_kind
from robustkd.lazy import nn, torch
from robustkd.targets.cards import target_from_card
from robustkd.targets.causal_lm import CausalLMTarget

if TYPE_CHECKING:
    from torch import Tensor

Told = TypeVar("Told", bound=Params, default=Params)


class GuardedCard(Card):
    """The card of a guarded model: the cards of the model and of the reader, and the guard's settings."""

    model: JsonObject
    reader: JsonObject | None = None
    settings: JsonObject


class GuardedTarget(GenerativeTarget, Generic[Told]):
    """A model with a guard. A subclass is one guard: it overrides ``alarm``, or ``answered`` and ``seen``.

    A request that sets embeddings has no text that a guard could read: it is put to the model itself.

    Args:
        model: what is guarded; it may have a guard of its own.
        settings: of the guard, as its card keeps them.
        reader: a model that the guard reads with, where it has one.
    """

    Settings: ClassVar[type[Params]]

    def __init__(self, model: GenerativeTarget, settings: Told, reader: GenerativeTarget | None = None) -> None:
        self.model, self.settings, self.reader = model, settings, reader
        self.module = nn.ModuleDict({"model": model.module} | ({} if reader is None else {"reader": reader.module}))
        self.capabilities = model.capabilities

    @property
    def scored(self) -> bool:
        """Whether ``alarm`` is a matter of degree that a search can follow, and costs no request to a server."""
        return True

    @property
    def filters(self) -> bool:
        """Whether it holds prompts back by ``alarm``; another guard shows the model other texts, or leads its answers."""
        return type(self).alarm is not GuardedTarget.alarm

    def alarm(self, texts: Sequence[str]) -> Tensor:
        """(N,) float32 on the CPU: how far each text is above what the guard lets pass, at most 0 of one that passes, NaN of one that
        it cannot read.
        """
        return torch.zeros(len(texts))

    def seen(self, text: str, draws: int) -> list[str]:
        """What the model sees of a prompt: ``draws`` texts where the guard draws, so many as an attacker draws for himself; else one."""
        return [text]

    def answered(self, asked: Sequence[Request]) -> list[Any]:
        """The answers to requests that set no embeddings."""
        answers: list[Any] = [Filtered(f"[held back by the guard {self.kind}]")] * len(asked)
        alarms = self.alarm([read(question) for question in asked]).tolist() if asked else []
        passed = [place for place, value in enumerate(alarms) if value <= 0]
        for place, answer in zip(passed, self.model.respond([asked[place] for place in passed]), strict=True):
            answers[place] = answer
        for place, value in enumerate(alarms):
            if np.isnan(value):
                answers[place] = Unanswered(f"[the guard {self.kind} cannot read this request]")
        return answers

    def with_weights(self, weights: Mapping[str, Tensor]) -> GenerativeTarget:
        """Of the model alone: who holds its weights runs it without a guard."""
        return self.model.with_weights(weights)

    def respond(self, asked: Sequence[Request]) -> list[Any]:
        """The model's answers, as far as the guard lets the requests pass."""
        answers: list[Any] = [None] * len(asked)
        texts = [place for place, question in enumerate(asked) if question.embeddings is None]
        others = [place for place, question in enumerate(asked) if question.embeddings is not None]
        for places, ask in ((texts, self.answered), (others, self.model.respond)):
            for place, answer in zip(places, ask([asked[place] for place in places]) if places else (), strict=True):
                answers[place] = answer
        return answers

    @override
    def embedding_distance(self, asked: Request) -> float:
        return self.model.embedding_distance(asked)

    @override
    def card(self) -> JsonObject:
        return GuardedCard(
            target=self.kind,
            model=self.model.card(),
            reader=None if self.reader is None else self.reader.card(),
            settings=self.settings.model_dump(mode="json"),
        ).to_json()

    @classmethod
    @override
    def from_card(cls, card: JsonObject) -> GuardedTarget[Any]:
        own = GuardedCard.read(card)
        model = of_kind(target_from_card(own.model), "model", GenerativeTarget)
        reader = None if own.reader is None else of_kind(target_from_card(own.reader), "reader", GenerativeTarget)
        settings: Any = cls.Settings.model_validate(own.settings)
        return cls(model, settings, reader)


def guards_of(target: object) -> list[GuardedTarget[Any]]:
    """The guards around a model, the outermost first."""
    found: list[GuardedTarget[Any]] = []
    while isinstance(target, GuardedTarget):
        found.append(target)
        target = target.model
    return found


def unguarded(target: GenerativeTarget) -> GenerativeTarget:
    """The model that stands behind all guards."""
    guards = guards_of(target)
    return guards[-1].model if guards else target


def read(asked: Request) -> str:
    """What a guard reads of a request: all that the user says, earlier turns included."""
    return "\n\n".join([*(said for said, _ in asked.turns), asked.prompt])


class BehindGuards(CausalLMTarget):
    """A language model as a search sees it that knows the guards in front of it.

        loss(prompt) = mean over what the model sees of it ( loss of the bare model ) + weight * sum over guards max(0, alarm)

    Args:
        target: the guarded model.
        weight: of the alarms.
        draws: texts that stand for what a guard draws. They are the attacker's own: it does not know what the guard will draw.

    Attributes:
        bare: the model without guards.
        copies: how many texts it sees of a prompt.

    Raises:
        TargetError: the model tells no log-probabilities, or a guard no score.
    """

    def __init__(self, target: GenerativeTarget, weight: float, draws: int) -> None:
        model = unguarded(target)
        if not isinstance(model, CausalLMTarget):
            raise TargetError(f"a {model.kind} tells no log-probabilities", fix="attack it by its answers, with pair")
        self.guards, self.weight, self.draws = guards_of(target), weight, draws
        if unscored := [guard.kind for guard in self.guards if not guard.scored]:
            raise TargetError(
                f"the guard {unscored[0]} says yes or no, and no search can follow that",
                fix="attack it by its answers, with pair; or give the guard a local model as its reader",
            )
        chat = model.chat
        super().__init__(
            model.module,
            chat.tokenizer,
            max_new_tokens=model.max_new_tokens,
            system=chat.system,
            context=chat.context,
            date=chat.date,
            template_options=chat.options,
        )
        self.bare = model
        self.copies = math.prod(len(guard.seen("a", draws)) for guard in self.guards)

    def views(self, prompts: Sequence[str]) -> tuple[list[list[str]], Tensor]:
        """What the model sees of each prompt, and (N,) the weighted alarms."""
        shown, alarms = [[prompt] for prompt in prompts], torch.zeros(len(prompts))
        if not prompts:
            return shown, alarms
        for guard in self.guards:
            raised = guard.alarm([text for texts in shown for text in texts])
            raised = torch.where(raised.isnan(), torch.inf, raised.clamp_min(0))
            alarms = alarms + raised.unflatten(0, (len(prompts), -1)).mean(1)
            shown = [[view for text in texts for view in guard.seen(text, self.draws)] for texts in shown]
        return shown, self.weight * alarms


def copies_seen(target: CausalLMTarget) -> int:
    """How many texts the model sees of a prompt, and so the passes that its loss takes."""
    return target.copies if isinstance(target, BehindGuards) else 1
