"""The loss of target prefixes for candidate suffixes, and its gradient.

    loss(s) = -1/|y| * sum_i log p(y_i | before, s, behind, y_<i)

``before`` is the chat up to the end of the request, ``behind`` what the template puts between the request and the answer. What is
before is the same for all suffixes of a request: it is computed once, where the model's cache allows that. Requests whose
``before`` is equally long share a pass, so that nothing is padded in front of a suffix and a request's losses do not depend on who
else is there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from robustkd.attacks.text.engine.slots import Slots
from robustkd.attacks.text.engine.target_prefix import losses, rows_at_once
from robustkd.contracts import Attempts
from robustkd.lazy import torch
from robustkd.targets.chat import TokenBatch, Tokens
from robustkd.targets.guarded import BehindGuards
from robustkd.targets.memory import in_memory
from robustkd.targets.passes import PassCounter
from robustkd.targets.prefix import Prefix

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class _Group:
    """G requests whose ``before`` is equally long: (G, P) ids, and the prefix of all but the last of them, if the model has one."""

    before: Tensor
    prefix: Prefix | None


@dataclass(frozen=True)
class _Chunk:
    """Some of the rows that were asked about, in one pass: (N,) which, their conversations, and where the suffixes begin."""

    rows: Tensor
    batch: TokenBatch
    prefix: Prefix | None
    start: int


class Suffixes:
    """The suffixes of A requests.

    Args:
        slots: where they stand; the model is to be used inside ``frozen(target.module)``.
        answers: (A,) the target prefixes.
        rows: (A,) int64, the requests' positions in the batch, for ``passes``.
        passes: counts them for each request.
    """

    def __init__(self, slots: Slots, answers: Sequence[str], rows: Tensor, passes: Attempts | PassCounter) -> None:
        self.slots, self.answers, self.rows, self._passes = slots, answers, rows, passes
        self.target = target = slots.target
        laid = [
            target.encode(prompt, answer, ends=False, system=system)
            for prompt, answer, system in zip(slots.prompts, answers, slots.systems, strict=True)
        ]
        self._behind = target.batch([_from(len(before), tokens) for before, tokens in zip(slots.before, laid, strict=True)])
        self._groups: list[_Group] = []
        self._seat = torch.zeros(len(answers), 2, dtype=torch.int64)  # of each request, its group and its row there
        lengths = torch.tensor([len(ids) for ids in slots.before])
        for length in lengths.unique().flip(0):  # a cache that is proved behind the longest is proved behind all
            places = (lengths == length).nonzero().squeeze(1)
            before = torch.tensor([slots.before[place] for place in places.tolist()], device=target.device)
            self._seat[places, 0], self._seat[places, 1] = len(self._groups), torch.arange(len(places))
            self._groups.append(_Group(before, target.prefix(before[:, :-1])))

    def losses(self, places: Tensor, suffixes: Tensor, among: Tensor) -> Tensor:
        """(B, C) losses of (B, C, S) suffixes where the mask ``among`` says so, infinity elsewhere.

        One forward pass each; behind guards one for each text that the model sees, and those of the guards are not counted.
        """
        if isinstance(self.target, BehindGuards):
            return self._guarded(self.target, places, suffixes, among)
        found = torch.full(among.shape, torch.inf)
        owners, columns = among.nonzero().unbind(1)

        def lose(chunk: _Chunk) -> None:
            with torch.no_grad():
                values = self.target.completion_logprob(chunk.batch, prefix=chunk.prefix)
            found[owners[chunk.rows], columns[chunk.rows]] = -values.float().cpu()

        self._each_chunk(lose, places[owners], suffixes[owners, columns])
        for row, count in zip(self.rows[places], among.sum(1).tolist(), strict=True):
            self._passes.spend(row[None], forwards=count)
        return found

    def _guarded(self, target: BehindGuards, places: Tensor, suffixes: Tensor, among: Tensor) -> Tensor:
        found, texts = torch.full(among.shape, torch.inf), self.slots.texts(places, suffixes)
        owners, columns = among.nonzero().unbind(1)
        asked = [texts[owner][column] or "" for owner, column in zip(owners.tolist(), columns.tolist(), strict=True)]
        rows = places[owners].tolist()
        answers, systems = ([column[row] for row in rows] for column in (self.answers, self.slots.systems))
        found[owners, columns] = losses(target, asked, answers, systems)
        for row, count in zip(self.rows[places], among.sum(1).tolist(), strict=True):
            self._passes.spend(row[None], forwards=count * target.copies)
        return found

    def gradient(self, places: Tensor, suffixes: Tensor) -> Tensor:
        """(B, S, D) the loss's gradient in the embeddings of (B, S) suffixes; one forward and one backward pass each."""
        width = suffixes.shape[1]
        found = torch.zeros(*suffixes.shape, self.target.embedding.weight.shape[1], device=self.target.device)

        def differentiate(chunk: _Chunk) -> None:
            embedded = self.target.embed(chunk.batch.ids).detach()
            start, stop = chunk.start, chunk.start + width
            slot = embedded[:, start:stop].clone().requires_grad_()
            with torch.enable_grad():
                whole = torch.cat([embedded[:, :start], slot, embedded[:, stop:]], 1)
                value = self.target.completion_logprob(chunk.batch, whole, chunk.prefix)
                (gradient,) = torch.autograd.grad(-value.sum(), slot)
            found[chunk.rows] = gradient.float()

        self._each_chunk(differentiate, places, suffixes, share=3)  # what is kept for the backward pass
        self._passes.spend(self.rows[places], forwards=1, backwards=1)
        return found

    def next_logprobs(self, places: Tensor, suffixes: Tensor) -> Tensor:
        """(B, C, V) the model's own log-probabilities of what follows (B, C, S) suffixes; one forward pass each."""
        count, width = suffixes.shape[1:]
        found = torch.zeros(len(places) * count, len(self.target.embedding.weight), device=self.target.device)

        def follow(chunk: _Chunk) -> None:
            stop, skip = chunk.start + width, 0 if chunk.prefix is None else chunk.start - 1
            with torch.no_grad():
                logits = self.target.module(
                    input_ids=chunk.batch.ids[:, skip:stop],
                    attention_mask=chunk.batch.mask[:, :stop].long(),
                    use_cache=chunk.prefix is not None,
                    logits_to_keep=1,
                    **({} if chunk.prefix is None else chunk.prefix.option(len(chunk.rows))),
                ).logits
            found[chunk.rows] = logits[:, -1].float().log_softmax(-1)

        self._each_chunk(follow, places.repeat_interleave(count), suffixes.flatten(0, 1))
        self._passes.spend(self.rows[places], forwards=count)
        return found.unflatten(0, (len(places), count))

    def _each_chunk(self, work: Callable[[_Chunk], None], places: Tensor, ids: Tensor, share: int = 1) -> None:
        """Call ``work`` with the conversations that (N, S) suffixes make of the requests at (N,) ``places``.

        As many in a chunk as fit into a pass, and fewer of those that turn out not to.
        """

        def part(group: _Group, rows: Tensor) -> None:
            work(self._chunk(group, rows, places, ids))

        for number, group in enumerate(self._groups):
            start = group.before.shape[1]
            length, answer = start + ids.shape[1] + self._behind.ids.shape[1], int(self._behind.completion.sum(1).max())
            rows = (self._seat[places, 0] == number).nonzero().squeeze(1)
            if not len(rows):
                continue
            most = max(1, rows_at_once(self.target, length, answer) // share)
            in_memory(partial(part, group), rows, most)

    def _chunk(self, group: _Group, rows: Tensor, places: Tensor, ids: Tensor) -> _Chunk:
        """The conversations of some rows, whose requests are of one group."""
        seats, behind = self._seat[places[rows], 1], self._behind.select(places[rows])
        width = int(behind.mask.sum(1).max())
        front = torch.cat([group.before[seats], ids[rows]], 1)
        none = torch.zeros_like(front, dtype=torch.bool)
        batch = TokenBatch(
            torch.cat([front, behind.ids[:, :width]], 1),
            torch.cat([~none, behind.mask[:, :width]], 1),
            torch.cat([none, behind.prompt[:, :width]], 1),
            torch.cat([none, behind.completion[:, :width]], 1),
        )
        return _Chunk(rows, batch, group.prefix.select(seats) if group.prefix else None, group.before.shape[1])


def _from(cut: int, tokens: Tokens) -> Tokens:
    """What comes behind the request: the template, and the answer."""
    return Tokens(tokens.ids[cut:], slice(0, 0), slice(tokens.completion.start - cut, tokens.completion.stop - cut))
