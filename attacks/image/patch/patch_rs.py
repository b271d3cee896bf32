"""Sparse-RS for patches: random search over the content and the place of a patch, from scores alone.

    start:    a patch of random pixels at a random place
    propose:  one square of the patch in a random corner colour of the pixel range; or, one time in five, the patch elsewhere
    keep the proposal if the margin is larger

The squares shrink as queries are spent, and so do the ways that the patch is moved.

Good against masked gradients, and where the place matters more than the gradient at the clean image tells.

Source: Croce, Andriushchenko, Singh, Flammarion, Hein: Sparse-RS: a versatile framework for query-efficient sparse black-box
adversarial attacks (AAAI 2022), arXiv:2006.12834, section 5 and appendix. The schedule of the squares is that of ``square``; the share of
moves and the linear decrease of their reach are ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.attacks.image.black_box.square import share_of_window, window
from robustkd.attacks.image.engine.ascent import AttackState, Search, SearchResult, fixed_budget, maximize, no_gradient
from robustkd.attacks.image.engine.ball import Ball
from robustkd.attacks.image.engine.objective import for_batch
from robustkd.attacks.image.patch.placement import PatchAttack, pasted, random_content, random_places, sides_of
from robustkd.contracts import AttackResult, Batch, Params, Target, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch
from robustkd.scoring.distances import per_sample

if TYPE_CHECKING:
    from torch import Tensor

_MOVES = 5  # one proposal in so many moves the patch


@dataclass(frozen=True)
class PatchProposals:
    """Proposals of content and place; ``memory`` holds those of the best point, and those that were proposed last."""

    rng: SampleRng
    sides: tuple[int, int]
    queries: int
    first: float

    def drawn(self, ball: Ball, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(A, C, h, w) contents and (A, 2) places to start from."""
        content = random_content(ball.centre, self.sides, ball.bounds, self.rng.fork("content").select(rows))
        return content, random_places(ball, self.sides, self.rng.fork("place").select(rows))

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
            m["next place"] = self._moved(m["place"], room, draws, t)
        else:
            m["next content"] = self._recoloured(m["content"], ball, draws, t)
        return ball.project(pasted(ball.centre, m["next content"], m["next place"]))

    def _moved(self, places: Tensor, room: list[int], draws: SampleRng, t: int) -> Tensor:
        left = 1 - t / self.queries
        reach = places.new_tensor([max(1, round(left * most)) if most else 0 for most in room])
        shift = (draws.uniform((2,), dtype=torch.float32) * (2 * reach + 1)).long() - reach
        return (places + shift).clamp_min(0).minimum(places.new_tensor(room))

    def _recoloured(self, content: Tensor, ball: Ball, draws: SampleRng, t: int) -> Tensor:
        _, channels, height, width = content.shape
        side = max(1, round(math.sqrt(share_of_window(t, self.queries, self.first) * height * width)))
        side = min(side, height, width)
        top, left = (draws.integers((), size - side + 1) for size in (height, width))
        low, high = (float(torch.as_tensor(bound).flatten()[0]) for bound in ball.bounds)
        colour = low + (high - low) * draws.integers((channels,), 2).to(content.dtype).view(-1, channels, 1, 1)
        return torch.where(window(top, left, side, height, width), colour, content)


class PatchRSParams(Params):
    queries: int = Field(5000, ge=2, description="forward passes for each sample in each restart")
    first_share: float = Field(0.4, gt=0, le=1, description="share of the patch in the first square")
    restarts: int = Field(1, ge=1, description="attempts with other random numbers, on the survivors only")


class PatchRS(PatchAttack):
    """Random search over a patch and its place: needs no gradient."""

    Params = PatchRSParams
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
