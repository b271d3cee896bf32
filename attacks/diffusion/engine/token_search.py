"""The search for tokens by gradient. It exists once; attacks differ in what goes down and in how tokens are relaxed.

    for each attempt:
        for each step:
            v   = tokens(x)                            discrete tokens, drawn from x or nearest to it
            g   = d error(embedding of v) / d x        straight through the discrete choice
            x   = update(x, Adam(g))
        the most likely tokens that have not been judged are decoded, and the target is asked with that text

``ranked`` judges those that the error was lowest for instead, of all that were visited and not judged. It is for errors without noise,
that is, where the same tokens have the same error again.

The first attempt of each request is the request as it is. A request leaves the search as soon as an attempt succeeds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Protocol

from pydantic import Field
from typing_extensions import override

from robustkd.attacks.diffusion.engine.denoising import DenoisingAttack
from robustkd.attacks.diffusion.engine.slots import Slots, SlotsParams, vocabulary
from robustkd.attacks.image.engine.adam import adam
from robustkd.contracts import Attempts, PromptBatch, Request, ThreatModel, UsageError, renamed
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch
from robustkd.targets import frozen
from robustkd.targets.guarded_drawing import BehindDrawingGuards
from robustkd.targets.memory import in_memory
from robustkd.targets.text_to_image import TextToImageTarget

if TYPE_CHECKING:
    from torch import Tensor


class TokenSearchParams(SlotsParams):
    """What every search for tokens is told."""

    steps: int = Field(40, ge=1, description="gradient steps before each attempt")
    batch_size: Annotated[int, renamed("batch_size", "together")] = Field(
        8, ge=1, description="requests that share a pass; no result depends on it"
    )


class Objective(Protocol):
    """What goes down.

    Attributes:
        forwards, backwards: passes of one step, for each request.
    """

    @property
    def forwards(self) -> int:
        """Forward passes of one step, for each request."""

    @property
    def backwards(self) -> int:
        """Backward passes of one step, for each request."""

    def __call__(self, rows: Tensor, embedded: Tensor, block: int, rng: SampleRng) -> Tensor:
        """(B,) values, from the (B, T, E) embeddings of the requests ``rows`` before attempt number ``block``, from 0."""


@dataclass(frozen=True)
class Relaxation(ABC):
    """Tokens as points that a gradient can move.

    Attributes:
        table: (A, E), the embeddings of the tokens that may be taken.
        lr: learning rate of Adam.
        weight_decay: of the points.
    """

    table: Tensor
    lr: float
    weight_decay: float

    @abstractmethod
    def start(self, rng: SampleRng, count: int) -> Tensor:
        """(N, count, *), where each request begins."""

    @abstractmethod
    def tokens(self, x: Tensor, rng: SampleRng) -> Tensor:
        """(B, count) int64 in 0..A-1, the tokens at which the gradient is taken."""

    @abstractmethod
    def likeliest(self, x: Tensor) -> Tensor:
        """(B, count) int64 in 0..A-1, the tokens that ``x`` stands for."""

    @abstractmethod
    def vjp(self, x: Tensor, gradient: Tensor) -> Tensor:
        """The vector-Jacobian product: the gradient in ``x``, from the (B, count, E) one in the embeddings of the tokens."""

    @abstractmethod
    def update(self, x: Tensor, direction: Tensor) -> Tensor:
        """Return ``x`` after one step against ``direction``, of the same shape."""


class TokenSearch:
    """The search of one attack for the requests of one batch."""

    def __init__(self, target: TextToImageTarget, batch: PromptBatch, attempts: Attempts, rng: SampleRng) -> None:
        self.target, self.batch, self.attempts, self.rng = target, batch, attempts, rng
        self.words = self._proposed(vocabulary(self.target))

    def _proposed(self, words: Tensor) -> Tensor:
        """The tokens of ``words`` that no guard holds back by themselves, where the search knows the guards.

        Raises:
            UsageError: there is none.
        """
        if not isinstance(self.target, BehindDrawingGuards):
            return words
        passing = [self.target.lets_pass(self.target.decode([token])) for token in words.tolist()]
        if not any(passing):
            raise UsageError("the guards hold back every token of the vocabulary", fix="list fewer words")
        return words[torch.tensor(passing, device=words.device)]

    @property
    def blocks(self) -> int:
        """Attempts that the search may make."""
        return self.attempts.budget - 1

    @property
    def table(self) -> Tensor:
        """(A, E) float32, the embeddings of the tokens that may be taken."""
        return self.target.embed(self.words.unsqueeze(1)).squeeze(1).detach().float()

    def slots(self, params: TokenSearchParams) -> Slots:
        """The positions of the added tokens in each request of the batch."""
        return Slots(self.target, self.batch.requests["prompt"], params.place, params.tokens).leave_full(self.attempts)

    def run(
        self,
        params: TokenSearchParams,
        slots: Slots,
        relaxation: Relaxation,
        objective: Objective,
        *,
        asked: bool = False,
        ranked: bool = False,
    ) -> None:
        """At most ``steps * (attempts - 1)`` steps for each request.

        Args:
            asked: the requests were judged as they are before.
            ranked: the tokens with the lowest value are judged, not those that the search stands at.
        """
        self._relaxation, self._objective, self._slots = relaxation, objective, slots
        self._x = relaxation.start(self.rng.fork("start"), params.tokens)
        self._memory = {name: torch.zeros_like(self._x) for name in ("first", "second")}
        self._judged_tokens: list[set[tuple[int, ...]]] = [set() for _ in range(len(self.batch))]
        self._visited: dict[int, tuple[Tensor, Tensor]] = {}
        with frozen(self.target.module):
            if not asked:
                everyone = self.attempts.open
                self.attempts(everyone, [Request(self.batch.requests["prompt"][row]) for row in everyone.tolist()])
            for block in range(self.blocks):
                rows = self.attempts.open
                if not len(rows):
                    return
                parts = in_memory(partial(self._descend, block=block, steps=params.steps), rows, params.batch_size)
                visited, values = (torch.cat(part) for part in zip(*parts, strict=True))
                if ranked:
                    candidates = map(self._lowest_first, rows.tolist(), visited, values)
                else:
                    likeliest = self.words[relaxation.likeliest(self._x[rows])].unsqueeze(1)
                    candidates = iter(torch.cat([likeliest, visited], 1))
                self._attempt(rows, candidates)

    def _descend(self, rows: Tensor, block: int, steps: int) -> tuple[Tensor, Tensor]:
        """(B, steps, count), the tokens that were visited, the last ones first, and (B, steps), their values."""
        x, memory = self._x[rows], {name: state[rows] for name, state in self._memory.items()}
        visited, values = [], []
        for step in range(steps):
            draws = self.rng.fork(f"{block}/{step}").select(rows)
            tokens = self.words[self._relaxation.tokens(x, draws)]
            gradient, value = self._gradient(rows, tokens, block, draws)
            age = torch.full((len(rows),), block * steps + step, device=x.device)
            x = self._relaxation.update(x, adam(memory, self._relaxation.vjp(x, gradient), age))
            visited.append(tokens)
            values.append(value)
        self._x[rows] = x
        for name, state in memory.items():
            self._memory[name][rows] = state
        self.attempts.spend(rows, steps * self._objective.forwards, steps * self._objective.backwards)
        return torch.stack(visited[::-1], 1), torch.stack(values[::-1], 1)

    def _gradient(self, rows: Tensor, tokens: Tensor, block: int, draws: SampleRng) -> tuple[Tensor, Tensor]:
        """(B, count, E) float32, of the objective in the embeddings of the tokens, and its (B,) values."""
        embedded = self.target.embed(self._slots.filled(rows, tokens)).detach().requires_grad_()
        with torch.enable_grad():
            # In half precision the gradient of a mean over pixels would vanish on its way back.
            scale = 1.0 if embedded.dtype == torch.float32 else 2.0**12
            value = self._objective(rows, embedded, block, draws)
            (gradient,) = torch.autograd.grad(value.sum() * scale, embedded)
        at = self._slots.positions[rows].unsqueeze(2).expand(-1, -1, embedded.shape[2])
        return gradient.gather(1, at).float() / scale, value.detach()

    def _lowest_first(self, row: int, visited: Tensor, values: Tensor) -> Tensor:
        """(M, count), the tokens that the request has visited until now, those with the lowest value first."""
        before, told = self._visited.get(row, (visited[:0], values[:0]))
        self._visited[row] = found, value = torch.cat([visited, before]), torch.cat([values, told])
        return found[value.argsort(stable=True)]

    def _attempt(self, rows: Tensor, candidates: Iterable[Tensor]) -> None:
        """One attempt for each request that has a text among its (M, count) tokens that was not judged before, the first ones first."""
        places, asked = [], []
        for row, tokens in zip(rows.tolist(), candidates, strict=True):
            text = self._unjudged(row, tokens)
            if text is not None:
                places.append(row)
                asked.append(Request(text))
        self.attempts(torch.tensor(places, dtype=torch.int64), asked)

    def _passes(self, text: str) -> bool:
        return not isinstance(self.target, BehindDrawingGuards) or self.target.lets_pass(text)

    def _unjudged(self, row: int, candidates: Iterable[Tensor]) -> str | None:
        for tokens in candidates:
            if (key := tuple(tokens.tolist())) in self._judged_tokens[row]:
                continue
            self._judged_tokens[row].add(key)
            if self._slots.roundtrips(row, tokens, text := self._slots.text(row, tokens)) and self._passes(text):
                return text
        return None


class DenoisingTokenAttack(DenoisingAttack):
    """Searches tokens that lower the denoising error; a subclass says how tokens are relaxed."""

    @abstractmethod
    def relaxation(self, table: Tensor) -> Relaxation:
        """The tokens of the (A, E) ``table`` as points that a gradient can move."""

    @override
    def search(
        self, target: TextToImageTarget, batch: PromptBatch, attempts: Attempts, threat: ThreatModel, rng: SampleRng
    ) -> None:
        """At most ``steps * (attempts - 1)`` steps for each request."""
        search = TokenSearch(target, batch, attempts, rng)
        objective = self.error(search.target, batch.requests, search.blocks)
        search.run(self.params, search.slots(self.params), self.relaxation(search.table), objective)
