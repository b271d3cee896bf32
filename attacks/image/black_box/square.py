"""Square: random search with squares, from scores alone.

    x_0 = x + eps * (vertical stripes of random signs)
    propose: one square window of the best point, every channel at +eps or -eps (linf);
             one window's share of the l2 or l1 budget moved to another (l2, l1)
    keep the proposal if the margin is larger

and the window shrinks as queries are spent.

Good against masked gradients, since it uses none: what it breaks beyond the gradient attacks says that these failed. On
honest networks it is weaker than they are, and costs thousands of queries a sample.

Source: Andriushchenko, Croce, Flammarion, Hein: Square attack: a query-efficient black-box adversarial attack via random
search (ECCV 2020), algorithms 1 to 3. For l1, Croce & Hein: Mind the box (ICML 2021), appendix C, which puts the 1-norm into
algorithm 3. Their code has more for l1, which was read in it: steeper bumps, a start that is projected and not shrunk, so that few pixels
carry it, and windows that get as many times their share as there are channels before they are projected.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from pydantic import Field
from typing_extensions import override

from robustkd.attacks.image.engine.ascent import AttackState
from robustkd.attacks.image.engine.ball import PROJECTION_REVISIONS, Ball
from robustkd.attacks.image.engine.random_search import Proposals, RandomSearchAttack
from robustkd.contracts import AttackError, Params
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch
from robustkd.scoring.distances import per_sample

if TYPE_CHECKING:
    from torch import Tensor

_HALVE_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries (section 5 of the paper)

SQUARE_REVISIONS: Mapping[str, int] = MappingProxyType({"l1": PROJECTION_REVISIONS["l1"] + 1})
"""The ``revisions`` of what searches by ``square_update``: those of the projection and one more. Before that, in l1, bumps were those
of l2 and the start was shrunk to the ball, so that every pixel had a little of the budget."""

_AT_ONCE = 32  # queries whose random numbers are drawn at once


def share_of_window(t: int, queries: int, first: float) -> float:
    """The share of an image's pixels in the window of query ``t``: ``first``, halved as the budget is spent."""
    spent = t * 10_000 / queries
    return float(first / 2 ** sum(spent > mark for mark in _HALVE_AT))


def window(top: Tensor, left: Tensor, side: int, height: int, width: int) -> Tensor:
    """(A, 1, H, W) bool: the window of each sample. ``top``, ``left``: (A,)."""
    down = torch.arange(height, device=top.device).view(1, 1, -1, 1) - top.view(-1, 1, 1, 1)
    right = torch.arange(width, device=top.device).view(1, 1, 1, -1) - left.view(-1, 1, 1, 1)
    return ((down >= 0) & (down < side)) & ((right >= 0) & (right < side))


def places_of_windows(top: Tensor, left: Tensor, side: int, width: int) -> Tensor:
    """(A, side * side) where the values of each sample's window are in an image of that width, row after row."""
    along = torch.arange(side, device=top.device)
    return (top * width + left).unsqueeze(1) + (along.unsqueeze(1) * width + along).flatten()


def signs(bits: Tensor) -> Tensor:
    """+1 or -1 by the lowest bit."""
    return 1 - 2 * (bits & 1)


def bits_of_query(rng: SampleRng, state: AttackState, t: int, count: int) -> Tensor:
    """(A, count) the numbers of query ``t``, which is the first ``bits`` of the fork ``t``: drawn for some queries at once."""
    place = t % _AT_ONCE
    if place == 0 or "bits" not in state.memory:
        coming = range(t - place, t - place + _AT_ONCE)
        state.memory["bits"] = rng.select(state.rows).bits_of_forks(coming, (count,))
    return state.memory["bits"][:, place]


class LinfSquare(Proposals):
    """Proposals in linf, a window of one colour (algorithm 2)."""

    def start(self, ball: Ball, rows: Tensor) -> Tensor:
        """(A, *shape) the clean images plus vertical stripes of +eps or -eps."""
        _, channels, _, width = ball.centre.shape
        stripes = signs(self.rng.fork("start").select(rows).bits((channels, 1, width)))
        return ball.project(ball.centre + per_sample(ball.eps, ball.centre) * stripes)

    def step(self, state: AttackState, t: int) -> Tensor:
        """(A, *shape) the next proposals: the best points with one window recoloured."""
        best, ball = state.best_x, state.ball
        channels, width = best.shape[1], best.shape[3]
        first_row, first_column, room_down, room_right = ball.box
        side = max(1, round(math.sqrt(share_of_window(t, self.queries, self.first) * room_down * room_right)))
        side = min(side, room_down, room_right)
        bits = bits_of_query(self.rng, state, t, 2 + channels)
        top = first_row + (bits[:, 0] >> 1).abs() % (room_down - side + 1)
        left = first_column + (bits[:, 1] >> 1).abs() % (room_right - side + 1)
        places = places_of_windows(top, left, side, width).unsqueeze(1).expand(-1, channels, -1)
        low, high, before = (images.flatten(2).gather(2, places) for images in (*ball.corners, best))
        up = signs(bits[:, 2:]).unsqueeze(2) > 0
        colour = torch.where(up, high, low)
        # A window that has this colour already would be a wasted query (the authors draw again); the opposite colour is new.
        idle = (colour == before).flatten(1).all(1)
        if bool(idle.any()):
            colour = torch.where(per_sample(idle, colour), torch.where(up, low, high), colour)
        return best.flatten(2).scatter(2, places, colour).view_as(best)


def bump(height: int, width: int, power: int) -> Tensor:
    """(height, width): a pyramid, highest in the middle (the paper's eta^(h1, h2), section 3.4).

    Args:
        power: its steps are 1 / j^2 in l2, and 1 / j^4 in l1.
    """
    half = height // 2
    rows, columns = (torch.arange(height) - half).abs(), (torch.arange(width) - width // 2).abs()
    terms = (1 / torch.arange(half + 1, 0, -1, dtype=torch.float64) ** (4 / power)).cumsum(0)
    return terms[(half - rows.unsqueeze(1).maximum(columns)).clamp_min(0)]


@functools.cache
def two_bumps(side: int, power: int) -> Tensor:
    """(2, side, side): one bump up and one down, side by side and one above the other, of norm 1."""
    half = side // 2
    across = torch.cat([bump(side, half, power), -bump(side, side - half, power)], 1)
    return torch.stack([across, across.T]) / across.norm(p=power)


@dataclass(frozen=True)
class BumpSquare(Proposals):
    """Proposals in l2 (``power`` 2) and l1 (``power`` 1): a window takes over the budget of another (algorithm 3)."""

    power: int

    def start(self, ball: Ball, rows: Tensor) -> Tensor:
        """(A, *shape) the images tiled with bumps of random sign, five along its shorter side."""
        _, channels, height, width = ball.centre.shape
        side = max(1, min(height, width) // 5)
        down, right = height // side, width // side
        up = signs(self.rng.fork("start").select(rows).bits((channels, down, right)))
        tile = two_bumps(side, self.power)[0].to(ball.centre)
        tiles = up.repeat_interleave(side, 2).repeat_interleave(side, 3) * tile.repeat(down, right)
        delta = torch.zeros_like(ball.centre)
        delta[:, :, : down * side, : right * side] = tiles
        delta = ball.along(delta)
        length = delta.flatten(1).norm(p=self.power, dim=1).clamp_min(1e-12)
        size = ball.eps / length
        if self.power == 1:  # what is too much for the ball is left to the projection: of all pixels it leaves the peaks
            size = size.clamp_min(1)
        return ball.project(ball.centre + per_sample(size, delta) * delta)

    def step(self, state: AttackState, t: int) -> Tensor:
        """(A, *shape) the next proposals: the budget of two windows, and what was unused, goes to the first."""
        ball, p = state.ball, self.power
        delta = state.best_x - ball.centre
        _, channels, height, width = delta.shape
        first_row, first_column, room_down, room_right = ball.box
        side = max(3, round(math.sqrt(share_of_window(t, self.queries, self.first) * room_down * room_right)) | 1)
        side = min(side, room_down, room_right)
        bits = bits_of_query(self.rng, state, t, 5 + channels)
        down = first_row.unsqueeze(1) + (bits[:, :2] >> 1).abs() % (room_down - side + 1)
        right = first_column.unsqueeze(1) + (bits[:, 2:4] >> 1).abs() % (room_right - side + 1)
        taker, giver = (window(down[:, i], right[:, i], side, height, width) for i in (0, 1))

        def powers(values: Tensor) -> Tensor:
            return (values.square() if p == 2 else values.abs()).sum((2, 3), keepdim=True)

        unused = (per_sample(ball.eps, delta) ** p - powers(delta).sum(1, keepdim=True)).clamp_min(0)
        available = powers(delta * (taker | giver)) + unused / channels
        if p == 1:
            available = available * channels
        bumps = two_bumps(side, p).to(delta).flatten(1)[bits[:, 4] & 1]
        bumps = delta.new_zeros(len(delta), height * width).scatter_(
            1, places_of_windows(down[:, 0], right[:, 0], side, width), bumps
        )
        kept = delta * taker
        moved = kept.div_(powers(kept).pow(1 / p).clamp_min(1e-12)).add_(
            signs(bits[:, 5:]).view(-1, channels, 1, 1) * bumps.view(-1, 1, height, width)
        )
        moved = moved.div_(powers(moved).pow(1 / p).clamp_min(1e-12)).mul_(available.pow(1 / p))
        return torch.where(taker, moved, delta.mul_(~giver)).add_(ball.centre)


def square_update(ball: Ball, rng: SampleRng, queries: int, first: float) -> Proposals:
    """The proposals for a ball: ``queries`` of them are planned, the first window takes the share ``first`` of the image.

    Raises:
        AttackError: the inputs have no height and width.
    """
    if ball.centre.ndim != 4:
        raise AttackError(
            f"square attacks images, the inputs have shape {tuple(ball.centre.shape[1:])}", fix="reshape them to (C, H, W)"
        )
    if ball.norm == "linf":
        return LinfSquare(rng, queries, first)
    return BumpSquare(rng, queries, first, power=2 if ball.norm == "l2" else 1)


class SquareParams(Params):
    """Parameters of ``square``; the defaults are AutoAttack's."""

    queries: int = Field(5000, ge=1, description="forward passes for each sample in each restart")
    first_share: float = Field(0.8, gt=0, le=1, description="share of the image in the first window (p_init of the paper)")
    restarts: int = Field(1, ge=1, description="attempts with other random numbers, on the survivors only")
    give_up: bool = Field(
        False,
        description="give a sample up after 100, 200, 400, .. queries if, with every further doubling bringing what the last one "
        "brought, its margin would not fall to zero in time; towards a goal none is given up",
    )


class Square(RandomSearchAttack):
    """Square attack: needs no gradient. It maximizes the margin; targeted, -CE, as in the paper."""

    Params = SquareParams
    inputs = "images"
    norms = ("linf", "l2", "l1")
    regions = ("given",)
    version = "3"
    revisions = SQUARE_REVISIONS
    source = "Andriushchenko et al. 2020, arXiv:1912.00049; l1: Croce & Hein 2021, arXiv:2103.01208"

    @override
    def proposals(self, ball: Ball, rng: SampleRng) -> Proposals:
        """See ``square_update``.

        Raises:
            AttackError: the inputs have no height and width.
        """
        return square_update(ball, rng, self.params.queries, self.params.first_share)
