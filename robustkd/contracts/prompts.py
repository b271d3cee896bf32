"""Requests put to a generative model, what it answers, and who says whether it did what was asked.

A defense of a generative model is judged twice by the same question: did the output give what the request asks for? Of a
forbidden request that is a break, of a harmless one it is usefulness.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self

import numpy as np
from typing_extensions import TypeVar

from robustkd.contracts.attack import BaseAttack
from robustkd.contracts.capability import Capabilities
from robustkd.contracts.data import Modality
from robustkd.contracts.errors import DataError, UsageError
from robustkd.contracts.holder import TargetHolder
from robustkd.contracts.json_value import JsonObject
from robustkd.contracts.target import BaseTarget
from robustkd.contracts.threat import Space, ThreatModel

if TYPE_CHECKING:
    from torch import Tensor

    from robustkd.contracts.random import SampleRng

T = TypeVar("T")


@dataclass(frozen=True)
class Prompts:
    """Requests, as a table of texts.

    Attributes:
        columns: by name, N strings each. There is always ``prompt``. Known to the platform are also ``prefill`` (the beginning
            of an answer after which a model that knows what is asked goes on with it: how its knowledge is told from its
            willingness), ``system`` (the message of the system before the request, in the place of the target's own), and of what is
            drawn for it ``seed``, ``guidance_scale``, ``negative_prompt``, ``height`` and ``width`` (in pixels, both or neither).
            Everything else is between data, defenses, attacks and judges.
        labels: (N,) int64, the category of each request in 0..K-1.
        images: (N, C, H, W) uint8 or float32 in [0, 1], what the prompts describe, where there are such.
    """

    columns: Mapping[str, tuple[str, ...]]
    labels: np.ndarray
    images: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, column: str) -> tuple[str, ...]:
        """One column.

        Raises:
            DataError: there is none of that name.
        """
        if column not in self.columns:
            raise DataError(f"these prompts have no column '{column}'", fix=f"they have: {', '.join(self.columns)}")
        return self.columns[column]

    def get(self, column: str) -> tuple[str, ...]:
        """One column; empty texts where there is none of that name."""
        return self.columns.get(column, ("",) * len(self))

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """(C, H, W) of the images; () without."""
        return () if self.images is None else self.images.shape[1:]

    def asked(self, prefills: Sequence[str] | None = None) -> list[Request]:
        """Each request as it is, with its own system message and what it is to be drawn with, and behind a beginning of the answer
        where these are given.
        """
        own = (self.get(column) for column in ("seed", "guidance_scale", "system", "negative_prompt", "height", "width"))
        return [
            Request(
                prompt,
                prefill,
                seed=_number(seed, int),
                guidance_scale=_number(scale, float),
                system=system,
                negative_prompt=negative,
                size=(int(height), int(width)) if height and width else None,
            )
            for prompt, prefill, seed, scale, system, negative, height, width in zip(
                self["prompt"], prefills or ("",) * len(self), *own, strict=True
            )
        ]

    def select(self, rows: np.ndarray) -> Prompts:
        """The given rows (indices or mask)."""
        rows = np.asarray(rows)
        places = np.flatnonzero(rows) if rows.dtype == bool else rows
        columns = {name: tuple(texts[place] for place in places) for name, texts in self.columns.items()}
        return Prompts(columns, self.labels[places], None if self.images is None else self.images[places])

    def where(self, column: str, *values: str) -> Prompts:
        """The rows whose ``column`` is one of ``values``."""
        return self.select(np.array([text in values for text in self[column]], dtype=bool))

    def digest(self) -> str:
        """SHA-256 over every text, label and image."""
        state = hashlib.sha256()
        for name in sorted(self.columns):
            for text in (name, *self.columns[name]):
                encoded = text.encode()
                state.update(f"{len(encoded)}:".encode() + encoded)
        for array in (self.labels.astype("<i8", copy=False), self.images):
            if array is not None:
                state.update(f"{array.dtype.str}{array.shape}".encode())
                state.update(np.ascontiguousarray(array).data)
        return state.hexdigest()

    def validated(self, name: str, num_classes: int) -> Prompts:
        """Itself, or ``DataError`` when columns, labels or images do not fit together."""
        if len(self) == 0:
            raise DataError(f"data '{name}' is empty")
        if "prompt" not in self.columns:
            raise DataError(
                f"data '{name}': there is no column 'prompt'", fix=f"there are: {', '.join(self.columns) or 'none'}"
            )
        for column, texts in self.columns.items():
            if len(texts) != len(self):
                raise DataError(f"data '{name}': column '{column}' has {len(texts)} rows, there are {len(self)} labels")
        if self.images is not None and len(self.images) != len(self):
            raise DataError(f"data '{name}': {len(self.images)} images for {len(self)} prompts")
        if self.labels.min() < 0 or self.labels.max() >= num_classes:
            raise DataError(
                f"data '{name}': labels reach from {self.labels.min()} to {self.labels.max()}, but there are {num_classes} categories"
            )
        return self


def _number(text: str, kind: Callable[[str], T]) -> T | None:
    return kind(text) if text else None


Turn = tuple[str, str]
"""What a user said, and what the model is said to have answered."""


@dataclass(frozen=True, eq=False)
class Request:
    """What is put to a generative target.

    Attributes:
        prompt: the text. It is shown as a text and nothing else, so tokens that do not survive decoding are no success. Empty behind
            ``turns``: nothing more is said, and the conversation so far is put to the model, which may judge it.
        prefill: the beginning of the answer, put into the model's mouth.
        embeddings: (T, D) in place of the embedded prompt, as the target's ``embed`` lays it out.
        seed: of what is drawn.
        guidance_scale: of classifier-free guidance, None for the target's own.
        system: the message of the system before everything else, "" for the target's own.
        negative_prompt: what a drawing is led away from, beside the target's own.
        size: (height, width) in pixels of what is drawn, None for the target's own.
        weights: by name, in the place of some of the model's own: the model is the attacker's, who asks it without any guard.
        turns: of the conversation before ``prompt``. A target that takes these and ``system`` has the capability ``conversation``.
    """

    prompt: str
    prefill: str = ""
    embeddings: Tensor | None = None
    seed: int | None = None
    guidance_scale: float | None = None
    system: str = ""
    turns: tuple[Turn, ...] = ()
    negative_prompt: str = ""
    size: tuple[int, int] | None = None
    weights: Mapping[str, Tensor] | None = None


class CutOff(str):
    """A text that a target had not finished when it had written as many tokens as it may."""

    __slots__ = ()


class Filtered(str):
    """A text in the place of an answer that a filter before or behind the model held back: a refusal, whatever a judge reads in it."""

    __slots__ = ()


class Unanswered(str):
    """Why there is no answer to a request: that cannot be judged. What failed and may succeed the next time is an error instead."""

    __slots__ = ()


class GenerativeTarget(BaseTarget):
    """A target that answers requests: with texts, or with (C, H, W) images in [0, 1]."""

    capabilities: Capabilities = frozenset({"respond", "prefill", "sampling"})

    @classmethod
    @abstractmethod
    def from_card(cls, card: JsonObject) -> GenerativeTarget:
        """The target described by ``card``, with fresh weights."""

    @abstractmethod
    def respond(self, asked: Sequence[Request]) -> Sequence[Any]:
        """One answer each, a text or an image. What is drawn depends on each request's own seed, not on the batch.

        A text that was not finished is given as a ``CutOff``, so that their share is told. Where a filter held the answer back there
        is a ``Filtered``, where there can be none an ``Unanswered``.
        """

    def embedding_distance(self, asked: Request) -> float:
        """How far ``asked.embeddings`` are from a text, relative to the mean embedding norm: the largest distance of a token of the
        prompt from its own embedding, of an added one from the nearest embedding there is.

        Raises:
            UsageError: this target has no embeddings that a request may set.
        """
        raise UsageError(f"the embeddings of a request to a {self.kind} cannot be set", fix="attack it by its prompt")

    def with_weights(self, weights: Mapping[str, Tensor]) -> GenerativeTarget:
        """A copy of the model, without a guard, in which tensors of these names take the place of its own; it is left as it is.

        Raises:
            UsageError: nobody holds the weights of this target.
            AttackError: it has no weight of such a name or shape.
        """
        raise UsageError(f"the weights of a {self.kind} cannot be changed", fix="attack it by its prompt")


Answering = TypeVar("Answering", bound=GenerativeTarget, default=GenerativeTarget)


@dataclass(frozen=True, eq=False)
class Responses:
    """Requests, the target's outputs, and whether each gives what its request asks for, (N,) bool.

    Attributes:
        alarms: of a local language model with guards, (N,) how far each request is above what they let pass; else None.
    """

    requests: Prompts
    outputs: Sequence[Any]
    complied: np.ndarray
    alarms: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class PromptBatch:
    """The forbidden requests that an attack is given.

    Attributes:
        requests: N of them.
        index: (N,) int64, each one's position in its data set (it seeds its random stream), on the target's device.
        unattacked: the same requests as they are, and what the target answers.
        eligible: (N,) bool, whether the target could comply at all: it goes on with the ``prefill`` rightly. What it has
            forgotten is no success of a defense, and is not counted as a success of an attack.
        benign: harmless requests and the target's outputs, None where the data have none.
    """

    requests: Prompts
    index: Tensor
    unattacked: Responses
    eligible: np.ndarray
    benign: Responses | None = None

    def __len__(self) -> int:
        return len(self.requests)

    def select(self, rows: np.ndarray) -> PromptBatch:
        """The given requests (indices or mask), with all harmless ones."""
        places = np.arange(len(self))[rows]
        outputs = [self.unattacked.outputs[place] for place in places]
        requests = self.requests.select(places)
        unattacked = Responses(requests, outputs, self.unattacked.complied[places])
        index = self.index[places.tolist()]
        return PromptBatch(requests, index, unattacked, self.eligible[places], self.benign)


@dataclass(frozen=True, eq=False)
class Judgements:
    """What a judge says of N outputs.

    Attributes:
        complied: (N,) bool, whether the output gives what its request asks for; False where it cannot be judged.
        judged: (N,) bool, whether the output can be judged.
    """

    complied: np.ndarray
    judged: np.ndarray

    @classmethod
    def of(cls, verdicts: np.ndarray | Judgements) -> Judgements:
        """The verdicts themselves, or an array of them, in which NaN says that an output cannot be judged."""
        if isinstance(verdicts, Judgements):
            return verdicts
        said = np.asarray(verdicts)
        judged = ~np.isnan(said) if said.dtype.kind == "f" else np.ones(said.shape, dtype=bool)
        return cls(said.astype(bool) & judged, judged)

    def only(self, judged: np.ndarray) -> Judgements:
        """The same, but outputs outside ``judged`` (N,) bool cannot be judged either."""
        known = self.judged & judged
        return Judgements(self.complied & known, known)


class Judge(TargetHolder, ABC):
    """Says whether an output gives what its request asks for.

    Attributes:
        modalities: what it can judge.
    """

    modalities: ClassVar[tuple[Modality, ...]] = ("text",)

    @abstractmethod
    def complied(self, requests: Prompts, outputs: Sequence[Any]) -> np.ndarray | Judgements:
        """(N,) bool, one verdict for each request and its output; it does not depend on the other ones.

        A judge that cannot judge every output returns ``Judgements``. Empty answers are not judged, whatever it says of them.

        Raises:
            DataError: the requests lack a column that it needs, or ask for something that it does not know.
        """


class Attempts(ABC):
    """What an attack on prompts may do with the target's answers: have some of them judged, and no more.

    Attributes:
        budget: how many for each request.
        broken: (N,) bool tensor, requests with a successful attempt. An attack can leave them.
        used: (N,) int64 tensor, attempts made.
        answers: (N,) the target's latest answer to each request under attack, None before the first.
    """

    budget: int
    broken: Tensor
    used: Tensor
    answers: list[Any]

    @abstractmethod
    def __call__(self, rows: Tensor, asked: Sequence[Request]) -> Tensor:
        """Put one attempt for each of ``rows`` (positions in the batch, each once) to the target and have it judged.

        Returns:
            (len(rows),) bool: whether it succeeded; one whose answer cannot be judged did not.

        Raises:
            AttackError: an attempt uses what the threat model does not allow, or is one too many.
        """

    @abstractmethod
    def leave(self, rows: Tensor, why: str) -> None:
        """Give up ``rows``, for which the attack can write no attempt (it would be longer than the context, say), and go on with the
        others. One without an answer that was judged before is not judged: it has not withstood anything.
        """

    @abstractmethod
    def spend(self, rows: Tensor, forwards: int = 0, backwards: int = 0) -> None:
        """Note passes of the search itself, for each of ``rows``; an answer that is judged counts as one forward pass anyway."""

    @property
    def open(self) -> Tensor:
        """Positions of the requests that stand and have attempts left."""
        return (~self.broken & (self.used < self.budget)).nonzero().squeeze(1)


class PromptAttack(BaseAttack, Generic[Answering]):
    """An attack on requests: it searches, and puts what it finds to the target by ``attempts``, where every answer is judged.

    One that needs more of a target than its answers derives from ``PromptAttack[CausalLMTarget]``, say, and names it in ``needs``.

    Attributes:
        knows_guards: whether it reckons with guards in front of a model: ``search`` is given the target with its guards. Every other
            attack is given the model behind them, and knows nothing of them but the answers to its attempts.
        improves_on_answers: whether it writes attempts by the answers to those before, and so reckons with all that a target is.
    """

    modalities: ClassVar[tuple[Modality, ...]] = ("text",)
    space: ClassVar[Space] = "prompt"
    gradients: ClassVar[bool] = False
    needs: ClassVar[Capabilities] = frozenset({"respond"})
    knows_guards: ClassVar[bool] = False
    improves_on_answers: ClassVar[bool] = False

    def fit(self, target: Answering, requests: Prompts, rng: SampleRng) -> Self:
        """Learn from ``requests``; returns the attack that can be run. Called for each target, if it ``learns``.

        Args:
            target: will be attacked later, by other requests.
            requests: of the training data; the attacked ones are not among them.
            rng: a stream for each of them, on the target's device.
        """
        return self

    @abstractmethod
    def search(self, target: Answering, batch: PromptBatch, attempts: Attempts, threat: ThreatModel, rng: SampleRng) -> None:
        """Attack the requests of ``batch``: all its effect is in the attempts that it makes."""

    def most_attempts(self, allowed: int) -> int:
        """How many attempts it makes on a request at most, where so many are allowed: what a plan counts for a served model."""
        return allowed

    def most_asked_of_others(self, allowed: int) -> int:
        """How often it asks each model that its parameters refer to, for a request, at most; by default once for each attempt."""
        return self.most_attempts(allowed)

    def threat_for(self, threat: ThreatModel) -> ThreatModel:
        """As many attempts as the campaign allows, in the attack's own space."""
        return ThreatModel.by_prompt(threat.attempts, self.space)
