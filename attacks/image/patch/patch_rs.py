"""Sparse-RS for patches: random search over the content and the place of a patch, from scores alone.

    start:    a patch of random squares in corner colours of the pixel range, at a random place
    propose:  one square of the patch in a random corner colour; or, one time in four, the patch elsewhere
    keep the proposal if the margin is larger

The squares shrink as queries are spent, and so does the reach of a move, from three quarters of the image's side to none. A square of
one pixel always takes another colour than it has; in the second half of the queries with such squares, one channel of it changes.

Good against masked gradients, and where the place matters more than the gradient at the clean image tells.

Source: Croce, Andriushchenko, Singh, Flammarion, Hein: Sparse-RS: a versatile framework for query-efficient sparse black-box
adversarial attacks (AAAI 2022), arXiv:2006.12834, section 5 and appendix; the share of moves, their reach, the start and the pixels of
one channel were read in the authors' code (github.com/fra31/sparse-rs). The schedule of the squares is that of ``square``. That each
sample draws squares of its own, where theirs share one a query, and that the squares of the start are all of one size, are ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.attacks.image.black_box.square import share_of_window, window
from robustkd.attacks.image.engine.ascent import AttackState, Search, SearchResult, fixed_budget, maximize, no_gradient
from robustkd.attacks.image.engine.ball import Ball
from robustkd.attacks.image.engine.objective import for_batch
from robustkd.attacks.image.patch.placement import PatchAttack, pasted, pixel_range, random_places, sides_of
from robustkd.contracts import AttackResult, Batch, Params, Target, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch
from robustkd.scoring.distances import per_sample

if TYPE_CHECKING:
    from torch import Tensor

_MOVES = 4  # one proposal in so many moves the patch
_REACH = 0.75  # of the image's side, at first


@dataclass(frozen=True)
class PatchProposals:
    """Proposals of content and place; ``memory`` holds those of the best point, and those that were proposed last."""

    rng: SampleRng
    sides: tuple[int, int]
    queries: int
    first: float

    def drawn(self, ball: Ball, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(A, C, h, w) contents and (A, 2) places to start from."""
        draws, size = self.rng.fork("content").select(rows), max(1, math.ceil(math.sqrt(min(self.sides))) - 1)
        squares = tuple(math.ceil(side / size) for side in self.sides)
        colours = draws.integers((ball.centre.shape[1], *squares), 2).repeat_interleave(size, 2).repeat_interleave(size, 3)
        low, high = pixel_range(ball.bounds)
        content = low + (high - low) * colours[..., : self.sides[0], : self.sides[1]].to(ball.centre.dtype)
        return content, random_places(ball, self.sides, self.rng.fork("place").select(rows))

    @cached_property
    def one_channel_from(self) -> int:
        """The query from which on one channel of one pixel is changed."""
        first = next((t for t in range(self.queries) if self._side(t) == 1), self.queries)
        return (first + self.queries) // 2

    def _side(self, t: int) -> int:
        height, width = self.sides
        side = math.floor(math.sqrt(share_of_window(t, self.queries, self.first) * height * width))
        return min(max(1, side), height, width)

    def step(self, state: AttackState, t: int) -> Tensor:
        """(A, *shape) the next proposals."""
        m, ball = state.memory, state.ball
        if t == 0:
            m["content"], m["place"] = m["next content"], m["next place"] = self.drawn(ball, state.rows)
        kept = state.improved
        m["content"] = torch.where(per_sample(kept, m["content"]), m["next content"], m["content"])
        m["place"] = torch.where(kept.unsqueeze(1), m["next place"], m["place"])
        draws = self.rng.fork(t).select(state.rows)
        m["next content"], m["next place"] = m["content"], m["place"]
        room = [size - side for size, side in zip(ball.centre.shape[2:], self.sides, strict=True)]
        if ball.movable is None and max(room) and t % _MOVES == _MOVES - 1:
            m["next place"] = self._moved(m["place"], room, draws, t, (ball.centre.shape[2], ball.centre.shape[3]))
        else:
            m["next content"] = self._recoloured(m["content"], ball, draws, t)
        return ball.project(pasted(ball.centre, m["next content"], m["next place"]))

    def _moved(self, places: Tensor, room: list[int], draws: SampleRng, t: int, image: tuple[int, int]) -> Tensor:
        left = _REACH * (1 - t / self.queries)
        reach = places.new_tensor([max(1, round(left * size)) if most else 0 for most, size in zip(room, image, strict=True)])
        shift = (draws.uniform((2,), dtype=torch.float32) * (2 * reach + 1)).long() - reach
        return (places + shift).clamp_min(0).minimum(places.new_tensor(room))

    def _recoloured(self, content: Tensor, ball: Ball, draws: SampleRng, t: int) -> Tensor:
        _, channels, height, width = content.shape
        side = self._side(t)
        top, left = (draws.integers((), size - side + 1) for size in (height, width))
        low, high = pixel_range(ball.bounds)
        if side > 1:
            colour = low + (high - low) * draws.integers((channels,), 2).to(content.dtype).view(-1, channels, 1, 1)
        else:
            changed = torch.nn.functional.one_hot(draws.integers((), channels), channels).bool()
            if t < self.one_channel_from:
                changed = changed | draws.integers((channels,), 2).bool()
            colour = torch.where(changed.view(-1, channels, 1, 1), low + high - content, content)
        return torch.where(window(top, left, side, height, width), colour, content)


class PatchRSParams(Params):
    queries: int = Field(5000, ge=2, description="forward passes for each sample in each restart")
    first_share: float = Field(0.4, gt=0, le=1, description="share of the patch in the first square")
    restarts: int = Field(1, ge=1, description="attempts with other random numbers, on the survivors only")


class PatchRS(PatchAttack):
    """Random search over a patch and its place: needs no gradient."""

    Params = PatchRSParams
    version = "2"  # 1 began with random pixels, moved one time in five, and drew colours that a pixel had already
    goals = ("untargeted", "targeted")
    gradients = False
    loss_family = "margin"
    source = "Croce et al. 2022, arXiv:2006.12834"

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """Takes at most ``restarts * queries`` forward passes a sample."""
        p, objective, sides = self.params, for_batch("margin", batch), sides_of(threat, batch.inputs.shape[1:])

        def attempt(search: Search, rows: Tensor, ball: Ball, restart: int) -> SearchResult:
            update = PatchProposals(rng.fork(restart), sides, p.queries, p.first_share)
            return maximize(
                search.oracle,
                rows,
                ball,
                ball.project(pasted(ball.centre, *update.drawn(ball, rows))),
                objective=objective,
                update=update,
                steps=p.queries - 1,
                estimator=no_gradient,
            )

        return fixed_budget(target, batch, threat, attempt, restarts=p.restarts)
