"""The loop of every attack that improves a suffix step by step. It exists once, here.

    from the suffix s_t of each request: candidates, those of them that are a text, the loss of each
    s_{t+1} = the best candidate, where it is better than s_t

An attack hands over how candidates are made (from a gradient, at random). The loop keeps to what a request needs: what is broken,
or has no attempts left, leaves; the best prompts are judged as the search goes on (``CandidateQueue``).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pydantic import Field, field_validator
from typing_extensions import override

from robustkd.attacks.text.engine.candidate_queue import CandidateQueue
from robustkd.attacks.text.engine.slots import Slots, Texts, are_texts
from robustkd.attacks.text.engine.suffix import Suffixes
from robustkd.attacks.text.engine.target_prefix import REQUESTS, fitting, target_prefixes
from robustkd.attacks.text.engine.templates import REQUEST
from robustkd.attacks.text.engine.vocabulary import Vocabulary, apart
from robustkd.contracts import Attempts, Params, PromptAttack, PromptBatch, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch
from robustkd.targets import frozen
from robustkd.targets.causal_lm import CausalLMTarget

if TYPE_CHECKING:
    from torch import Tensor


class SuffixParams(Params):
    """Parameters of every attack that searches a suffix."""

    tokens: int = Field(20, ge=1, description="length of the suffix, in the target's tokens")
    template: str = Field(REQUEST, description="what is in front of the suffix; {request} stands for the request")
    ascii: bool = Field(True, description="make suffixes of printable ASCII characters alone")

    @field_validator("template")
    @classmethod
    def _has_a_place(cls, template: str) -> str:
        if template.count(REQUEST) != 1:
            raise ValueError(f"must hold {REQUEST} once, the place of the request")
        return template

    def in_template(self, request: str) -> str:
        """What is in front of the suffix."""
        return self.template.replace(REQUEST, request)


class Candidates(Protocol):
    """Proposes the suffixes whose losses a step compares."""

    def __call__(self, suffixes: Suffixes, places: Tensor, now: Tensor, t: int, rng: SampleRng) -> Tensor:
        """(B, C, S) candidates at step ``t`` for the requests at (B,) ``places``, whose suffixes are (B, S) ``now``."""


class Evaluation(Protocol):
    """Computes the losses of candidate suffixes, or of some of them."""

    def __call__(self, suffixes: Suffixes, places: Tensor, candidates: Tensor, texts: Texts, rng: SampleRng) -> Tensor:
        """(B, C) losses, infinite for those that are no text or were not looked at."""


def all_of_them(suffixes: Suffixes, places: Tensor, candidates: Tensor, texts: Texts, rng: SampleRng) -> Tensor:
    """The loss of every candidate that is a text."""
    return suffixes.losses(places, candidates, are_texts(texts))


def merge_swaps(now: Tensor, candidates: Tensor, losses: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The changes of the best candidates, made one upon the other: the best two, the best three, up to the best ``count``.

    Where two would change the same token the better one does.

    Args:
        now: (B, S), which the (B, C, S) candidates change.
        losses: (B, C), infinite for those that cannot be used.

    Returns:
        (B, count - 1, S), and (B, count - 1) whether each differs from the one before.

    Source: Jia et al.: Improved techniques for optimization-based jailbreaking (2024), arXiv:2405.21018, section 3.4.
    """
    best = losses.topk(min(count, losses.shape[1]), dim=1, largest=False)
    chosen = candidates.gather(1, best.indices.unsqueeze(2).expand(-1, -1, now.shape[1]))
    changed = (chosen != now.unsqueeze(1)) & best.values.isfinite().unsqueeze(2)
    merged = torch.where(changed[:, 0], chosen[:, 0], now)
    several, new = chosen[:, 1:].clone(), changed[:, 1:].any(2)
    for place in range(several.shape[1]):
        free = changed[:, place + 1] & (merged == now)
        merged = torch.where(free, several[:, place], merged)
        several[:, place], new[:, place] = merged, free.any(1)
    return several, new


@dataclass(frozen=True)
class Descent:
    """A search for a suffix.

    Attributes:
        params: of the suffix.
        vocabulary: what it is made of.
        steps: how often it is changed.
        candidates: where to look.
        evaluation: what is found there.
        starts: it begins at the best of so many random suffixes.
        greedy: stay where no candidate is better; otherwise go to the best one anyway.
        merged: of so many of the best candidates the changes are made together as well, see ``merge_swaps``.
    """

    params: SuffixParams
    vocabulary: Vocabulary
    steps: int
    candidates: Candidates
    evaluation: Evaluation = all_of_them
    starts: int = 1
    greedy: bool = True
    merged: int = 1

    def __call__(self, target: CausalLMTarget, batch: PromptBatch, attempts: Attempts, rng: SampleRng) -> None:
        """Search a suffix for each open request of ``batch`` and have the prompts judged by ``attempts``."""
        p, requests = self.params, batch.requests
        answers, systems = target_prefixes(requests), requests.get("system")
        prompts = [p.in_template(prompt) for prompt in requests["prompt"]]

        def descend(rows: Tensor) -> None:
            slots = Slots(target, *([column[row] for row in rows.tolist()] for column in (prompts, systems)))
            suffixes = Suffixes(slots, [answers[row] for row in rows.tolist()], rows, attempts)
            self._descend(suffixes, attempts, rng.select(rows))

        everyone = fitting(target, requests, attempts, suffix=p.tokens, answers=answers, template=p.in_template)
        with frozen(target.module):
            for rows in everyone.split(REQUESTS):
                apart(rows, attempts, descend)

    def _descend(self, suffixes: Suffixes, attempts: Attempts, rng: SampleRng) -> None:
        queue = CandidateQueue(attempts, self.steps)
        now, loss = self._start(suffixes, queue, rng)
        for t in range(self.steps):
            places = torch.isin(suffixes.rows, attempts.open).nonzero().squeeze(1)
            if not len(places):
                return
            texts, losses = self.step(suffixes, places, now, loss, t, rng.select(places).fork(t))
            queue.offer_best(suffixes.rows[places], texts, losses)
            queue.step()

    def step(
        self, suffixes: Suffixes, places: Tensor, now: Tensor, loss: Tensor, t: int, rng: SampleRng
    ) -> tuple[Texts, Tensor]:
        """Move the suffixes (A, S) ``now``, and their (A,) ``loss``, of the requests at (B,) ``places`` on by one step, in place.

        Returns:
            the prompts and the (B, C) losses of the candidates.
        """
        candidates = self.candidates(suffixes, places, now[places], t, rng.fork("candidates"))
        texts = suffixes.slots.texts(places, candidates)
        losses = self.evaluation(suffixes, places, candidates, texts, rng.fork("evaluation"))
        if min(self.merged, candidates.shape[1]) > 1:
            more, new = merge_swaps(now[places], candidates, losses, self.merged)
            joint = suffixes.slots.texts(places, more)
            losses = torch.cat([losses, suffixes.losses(places, more, new & are_texts(joint))], 1)
            candidates = torch.cat([candidates, more], 1)
            texts = [[*single, *several] for single, several in zip(texts, joint, strict=True)]
        found, column = losses.min(1)
        moves = (found < loss[places]) if self.greedy else found.isfinite()
        now[places[moves]] = candidates[moves.nonzero().squeeze(1), column[moves]]
        loss[places[moves]] = found[moves]
        return texts, losses

    def _start(self, suffixes: Suffixes, queue: CandidateQueue, rng: SampleRng) -> tuple[Tensor, Tensor]:
        """(A, S) the best of the starting suffixes, and their (A,) losses."""
        places = torch.arange(len(suffixes.rows))
        drawn = [
            self.vocabulary.random_suffixes(suffixes.slots, self.params.tokens, rng.fork(f"start/{number}"))
            for number in range(self.starts)
        ]
        starts = torch.stack([ids for ids, _ in drawn], 1)
        texts = list(zip(*(prompts for _, prompts in drawn), strict=True))
        losses = suffixes.losses(places, starts, are_texts(texts))
        queue.offer_best(suffixes.rows, texts, losses)
        loss, column = losses.min(1)
        return starts[places, column], loss


class DescentAttack(PromptAttack[CausalLMTarget]):
    """An attack that is one ``Descent``; its parameters are ``SuffixParams`` and what the subclass adds."""

    needs = PromptAttack.needs | {"tokens", "log-probabilities"}

    @abstractmethod
    def descent(self, target: CausalLMTarget, vocabulary: Vocabulary) -> Descent:
        """The search for suffixes made of ``vocabulary``."""

    @override
    def search(
        self, target: CausalLMTarget, batch: PromptBatch, attempts: Attempts, threat: ThreatModel, rng: SampleRng
    ) -> None:
        """As many passes as ``descent`` says; a request without a ``target`` is a DataError."""
        self.descent(target, Vocabulary.of(target, self.params.ascii))(target, batch, attempts, rng)
