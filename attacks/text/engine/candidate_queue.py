"""The candidate prompts of a search, and when they are judged: the attempts are spread over the steps.

By the end of step t of T, budget * t / T attempts have been made on each request that stands, each on the prompt with the lowest
loss among those not judged yet. So a search that succeeds early is stopped early, no prompt is judged twice, and the last attempt
is left for the last step.
"""

from __future__ import annotations

import heapq
import math
from typing import TYPE_CHECKING

from robustkd.attacks.text.engine.slots import Texts
from robustkd.contracts import Attempts, Request
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class CandidateQueue:
    """The candidate prompts of each request that have not been judged, ordered by their loss.

    Args:
        attempts: judges prompts, within the budget of each request.
        steps: number of steps of the search.
    """

    def __init__(self, attempts: Attempts, steps: int) -> None:
        self._attempts, self._steps, self._step = attempts, steps, 0
        self._waiting: dict[int, list[tuple[float, str]]] = {}
        self._known: set[tuple[int, str]] = set()

    def offer(self, row: int, prompt: str, loss: float) -> None:
        """Add a prompt for the request at ``row`` of the batch, unless it was added before."""
        if (row, prompt) not in self._known:
            self._known.add((row, prompt))
            heapq.heappush(self._waiting.setdefault(row, []), (loss, prompt))

    def offer_best(self, rows: Tensor, texts: Texts, losses: Tensor, count: int = 1) -> None:
        """Add the ``count`` best of (B, C) prompts for each of the (B,) ``rows``, as far as they are texts with a finite loss."""
        found, columns = losses.topk(min(count, losses.shape[1]), dim=1, largest=False)
        for row, own, values, places in zip(rows.tolist(), texts, found.tolist(), columns.tolist(), strict=True):
            for value, place in zip(values, places, strict=True):
                text = own[place]
                if text is not None and math.isfinite(value):
                    self.offer(row, text, value)

    def step(self) -> None:
        """End a step of the search: the prompts that are due are judged."""
        self._step += 1
        due = self._attempts.budget * self._step // self._steps
        while len(rows := self._due(due)):
            prompts = [heapq.heappop(self._waiting[row])[1] for row in rows.tolist()]
            self._attempts(rows, [Request(prompt) for prompt in prompts])

    def _due(self, count: int) -> Tensor:
        rows = self._attempts.open
        waiting = torch.tensor([bool(self._waiting.get(row)) for row in rows.tolist()], dtype=torch.bool)
        return rows[waiting & (self._attempts.used[rows] < count)]
