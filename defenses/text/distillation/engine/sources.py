"""Which texts a student is trained on: the data's, or a pool of answers that teacher and student write, token by token
or in turns.

    speculative    x ~ q, kept with the probability min(1, p(x) / q(x)), else x ~ max(p - q, 0);   p the teacher's, q the student's

What is written so is distributed as the teacher's own (Leviathan et al. 2023), and where a proposal was not kept, the student
was wrong: with ``rejected`` it is trained at these tokens alone.

Source of the mixtures: Liu et al.: Online speculative decoding (ICML 2024), section 4, whose sources are the teacher,
the student, a mixture of requests and a mixture of tokens with a probability of 0.5 (read in the authors'
distill/distill_trainer.py). That a pool is written at once and lasts for ``every`` updates is ours: they write each
minibatch anew. Theirs propose five tokens at a time; one at a time is rejected at the same places, but for the token that a
target adds behind five kept ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from robustkd.contracts import DataError, Params
from robustkd.contracts.json_value import JsonObject
from robustkd.contracts.params import AddedLater
from robustkd.lazy import torch
from robustkd.targets import frozen
from robustkd.targets.causal_lm import CausalLMTarget
from robustkd.targets.chat import Tokens

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

_ROWS = 128
"""Answers that are written side by side."""
SourceName = Literal["data", "teacher", "student", "mixed-requests", "mixed-tokens", "speculative"]


class FilterParams(Params):
    """Which written answers are kept."""

    distinct: bool = Field(True, description="each request and answer once")
    shortest: int = Field(1, ge=1, description="tokens, at least")
    longest: int | None = Field(None, ge=1, description="tokens, at most")
    likelihood: float | None = Field(
        None, le=0, description="the teacher's mean log-probability of a token of the answer, at least: the critic"
    )


class SourceParams(Params):
    """Who writes the answers that are trained on."""

    kind: SourceName = Field("data", description="the data's answers, or those of a model, or of one of the two by chance")
    teacher_share: float = Field(0.5, ge=0, le=1, description="of mixtures: of the requests, or of the tokens, the teacher's")
    temperature: float = Field(1.0, ge=0, description="at which answers are drawn; 0: the likeliest token each time")
    pool: int = Field(512, ge=1, description="requests that are answered at once")
    every: int = Field(100, ge=1, description="updates after which the student's part is written anew; the teacher's stays")
    filters: FilterParams | None = Field(None, description="which answers are kept")
    rejected: Annotated[bool, AddedLater()] = Field(
        True,
        description="of speculative: whether only tokens are trained on at which the student was rejected; false: the control",
    )

    @property
    def share(self) -> float:
        """Of the teacher."""
        return {"teacher": 1.0, "student": 0.0}.get(self.kind, self.teacher_share)


@dataclass(frozen=True)
class Verified(Tokens):
    """A conversation whose answer a draft proposed and a target verified, and at which tokens of the answer it was rejected."""

    rejected: tuple[bool, ...] = ()


class Pool:
    """Answers that are trained on for a while.

    Args:
        params: who writes them.
        teacher: one of the two writers, and the critic.
        draw: draws requests, each with some answer, which is not looked at.
    """

    def __init__(
        self, params: SourceParams, teacher: CausalLMTarget, draw: Callable[[int, torch.Generator], list[Tokens]]
    ) -> None:
        self._params, self._teacher, self._draw = params, teacher, draw
        self.items: list[Tokens] = []
        self._updates = 0

    def take(self, student: CausalLMTarget, count: int, generator: torch.Generator) -> list[Tokens]:
        """``count`` conversations for the next update.

        Raises:
            DataError: the filters keep no answer.
        """
        p = self._params
        if not self.items or (self._updates % p.every == 0 and p.kind != "teacher"):
            requests = self._draw(p.pool, generator)
            with frozen(student.module), torch.no_grad():
                written = write(self._teacher, student, requests, p, generator)
                self.items = written if p.filters is None else kept(written, p.filters, self._teacher)
        self._updates += 1
        return [self.items[place] for place in torch.randint(len(self.items), (count,), generator=generator).tolist()]

    def state_dict(self) -> JsonObject:
        """The pool, and how many updates there were."""
        spans = [[t.prompt.start, t.prompt.stop, t.completion.start, t.completion.stop] for t in self.items]
        marks = [[bool(mark) for mark in item.rejected] if isinstance(item, Verified) else None for item in self.items]
        return {"ids": [list(item.ids) for item in self.items], "spans": spans, "marks": marks, "updates": self._updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.items = [
            Tokens(list(ids), slice(a, b), slice(c, d))
            if marks is None
            else Verified(list(ids), slice(a, b), slice(c, d), tuple(marks))
            for ids, (a, b, c, d), marks in zip(
                state["ids"], state["spans"], state.get("marks") or [None] * len(state["ids"]), strict=True
            )
        ]
        self._updates = int(state["updates"])


def write(
    teacher: CausalLMTarget,
    student: CausalLMTarget,
    requests: Sequence[Tokens],
    params: SourceParams,
    generator: torch.Generator,
) -> list[Tokens]:
    """The requests with new answers, which end where a model ends them, or where there is no more room.

    Args:
        requests: conversations, whose answers are left out.
        params: who writes.
        generator: everything random, the same on every device.
    """
    written: list[Tokens] = []
    for first in range(0, len(requests), _ROWS):
        written += _written(teacher, student, requests[first : first + _ROWS], params, generator)
    return written


def _written(
    teacher: CausalLMTarget, student: CausalLMTarget, requests: Sequence[Tokens], p: SourceParams, generator: torch.Generator
) -> list[Tokens]:
    begun = [torch.tensor(item.ids[: item.completion.start], device=teacher.device) for item in requests]
    writers = [model for model, share in ((teacher, p.share), (student, 1 - p.share)) if share]
    texts = [model.continuation([model.embed(ids) for ids in begun]) for model in writers]
    room = torch.stack([text.room for text in texts]).amin(0)
    ends = torch.tensor(sorted(teacher.ends), device=teacher.device)
    by_teacher = _uniform(len(requests), generator, room) < p.share
    columns: list[Tensor] = []
    marks: list[Tensor] = []
    running = room > 0
    while running.any():
        if p.kind == "mixed-tokens":
            by_teacher = _uniform(len(requests), generator, room) < p.share
        logits = [text.logits().float() for text in texts]
        if p.kind == "speculative":
            chances = torch.stack([_uniform(len(requests), generator, room) for _ in range(3)])
            chosen, rejected = speculate(logits[0], logits[1], p.temperature, chances)
            marks.append(rejected)
        else:
            chosen = choose(
                torch.where(by_teacher[:, None], logits[0], logits[-1]), p.temperature, _uniform(len(requests), generator, room)
            )
        columns.append(torch.where(running, chosen, -1))
        running = running & ~torch.isin(chosen, ends) & (room > len(columns))
        for text in texts:
            text.append(chosen)
    answers = torch.stack(columns, 1).tolist() if columns else [[]] * len(requests)
    written = [
        _with_answer(item, [token for token in answer if token >= 0]) for item, answer in zip(requests, answers, strict=True)
    ]
    if not marks:
        return written
    wrong = torch.stack(marks, 1).tolist()
    return [
        Verified(item.ids, item.prompt, item.completion, tuple(marked[: item.completion.stop - item.completion.start]))
        for item, marked in zip(written, wrong, strict=True)
    ]


def choose(logits: Tensor, temperature: float, uniform: Tensor) -> Tensor:
    """(B,) tokens of (B, V) logits: the likeliest at temperature 0, else the ones at which (B,) uniform numbers in [0, 1) fall."""
    if temperature == 0:
        return logits.argmax(1)
    heights = (logits / temperature).softmax(1).cumsum(1)
    reached = (1 - uniform) * heights[:, -1]  # above 0, so that no token of probability 0 is drawn
    return torch.searchsorted(heights, reached[:, None]).squeeze(1)


def speculate(teacher: Tensor, student: Tensor, temperature: float, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) tokens that the student proposes and the teacher verifies, and (B,) bool, whether the proposal was rejected.

    Args:
        teacher, student: (B, V) logits.
        uniform: (3, B) in [0, 1): of the proposal, of the verification, and of what takes a rejected one's place.
    """
    proposed = choose(student, temperature, uniform[0])
    if temperature == 0:
        best = teacher.argmax(1)
        return best, best != proposed
    p, q = ((logits / temperature).softmax(1) for logits in (teacher, student))
    own, other = (probabilities.gather(1, proposed[:, None]).squeeze(1) for probabilities in (p, q))
    rejected = uniform[1] * other >= own
    left = (p - q).clamp_min(0)
    # Where both are the same but for rounding there is nothing left.
    left = torch.where(left.sum(1, keepdim=True) > 0, left, p)
    instead = choose(left.log(), 1.0, uniform[2])
    return torch.where(rejected, instead, proposed), rejected


def kept(written: Sequence[Tokens], filters: FilterParams, teacher: CausalLMTarget) -> list[Tokens]:
    """Those of some conversations whose answers pass the filters, in their order.

    Raises:
        DataError: none does.
    """
    lengths = [item.completion.stop - item.completion.start for item in written]
    passed = [item for item, n in zip(written, lengths, strict=True) if filters.shortest <= n <= (filters.longest or n)]
    if filters.distinct:
        passed = list({tuple(item.ids): item for item in passed}.values())
    if filters.likelihood is not None and passed:
        with frozen(teacher.module), torch.no_grad():
            parts = [passed[first : first + _ROWS] for first in range(0, len(passed), _ROWS)]
            surety = torch.cat([teacher.completion_logprob(teacher.batch(part)) for part in parts]).tolist()
        passed = [item for item, value in zip(passed, surety, strict=True) if value >= filters.likelihood]
    if not passed:
        raise DataError(
            f"the filters keep none of {len(written)} written answers",
            fix="loosen source: {filters: ..}, or write a larger pool",
        )
    return passed


def _with_answer(request: Tokens, answer: list[int]) -> Tokens:
    begin = request.completion.start
    return Tokens([*request.ids[:begin], *answer], request.prompt, slice(begin, begin + len(answer)))


def _uniform(count: int, generator: torch.Generator, like: Tensor) -> Tensor:
    return torch.rand(count, generator=generator).to(like.device)
