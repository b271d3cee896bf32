"""The constraint: the points within eps of a clean image that are images themselves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING

from robustkd.contracts.random import SampleRng
from robustkd.contracts.region import extent
from robustkd.contracts.target import Bounds
from robustkd.contracts.threat import Norm
from robustkd.lazy import torch
from robustkd.scoring.distances import distance, per_sample, random_offsets
from robustkd.scoring.pixels import highest, over_channels

if TYPE_CHECKING:
    from torch import Tensor

STEEPEST_REVISIONS: Mapping[str, int] = MappingProxyType({"l1": 2})
"""The ``revisions`` of what moves by ``Ball.steepest``. Before 1, pixels that their bounds stop took a share of each step; before 2,
see ``PROJECTION_REVISIONS``."""
PROJECTION_REVISIONS: Mapping[str, int] = MappingProxyType({"l1": 1})
"""The ``revisions`` of what is projected by ``Ball.project``. Before 1, what the pixel range cut off was lost, or the threshold was
rounded otherwise."""
_MOST_STEPS = 100  # of Newton's method: some ten are enough
_VALUES = 2**20  # that are projected in l1 at once: it takes ten times their memory


@dataclass(frozen=True)
class Ball:
    """{x : ||x - centre|| <= eps, low <= x <= high, x = centre where it may not move}, one for each sample.

    Attributes:
        centre: (B, *shape) the clean images.
        eps: (B,) radii in pixel units.
        norm: of the radius.
        bounds: the range of valid pixels.
        movable: (B, ..) bool, broadcasts over ``centre``: the only values that may change, of each sample equally many; None where all
            may.
    """

    centre: Tensor
    eps: Tensor
    norm: Norm
    bounds: Bounds
    movable: Tensor | None = None

    @classmethod
    def around(cls, centre: Tensor, eps: float | Tensor, norm: Norm, bounds: Bounds, movable: Tensor | None = None) -> Ball:
        """Balls with one radius for all samples, or (B,) radii."""
        radii = torch.as_tensor(eps, dtype=centre.dtype, device=centre.device).expand(len(centre))
        return cls(centre, radii, norm, bounds, movable)

    def select(self, rows: Tensor | slice) -> Ball:
        """The balls of the samples ``rows`` (indices, mask or slice)."""
        movable = None if self.movable is None else self.movable[rows]
        return Ball(self.centre[rows], self.eps[rows], self.norm, self.bounds, movable)

    def resized(self, multiple: float, centre: Tensor | None = None) -> Ball:
        """The balls of ``multiple`` times the radius, around other points where ``centre`` says so."""
        return replace(self, centre=self.centre if centre is None else centre, eps=multiple * self.eps)

    @cached_property
    def size(self) -> int:
        """How many values of a sample may change."""
        if self.movable is None:
            return math.prod(self.centre.shape[1:])
        return int(self.movable[:1].expand_as(self.centre[:1]).sum())

    def along(self, direction: Tensor) -> Tensor:
        """A (B, *shape) gradient or perturbation with 0 in the values that may not change."""
        return direction if self.movable is None else direction * self.movable

    @cached_property
    def box(self) -> tuple[Tensor, Tensor, int, int]:
        """The rectangle of each (C, H, W) sample in which all lies that may change: (B,) top and left, height and width."""
        if self.movable is None:
            origin = torch.zeros(len(self.centre), dtype=torch.int64, device=self.centre.device)
            return origin, origin, *self.centre.shape[2:]
        image = self.movable.any(1, keepdim=True).expand(-1, -1, *self.centre.shape[2:])
        rows, columns = image.any(3).squeeze(1), image.any(2).squeeze(1)
        height, width = (int(extent(line).max()) for line in (rows, columns))
        return rows.long().argmax(1), columns.long().argmax(1), height, width

    @cached_property
    def corners(self) -> tuple[Tensor, Tensor]:
        """A linf ball within the pixel range is a box: its lowest and its highest point."""
        radius = per_sample(self.eps, self.centre)
        radius = radius if self.movable is None else radius * self.movable
        return (self.centre - radius).clamp(*self.bounds), (self.centre + radius).clamp(*self.bounds)

    def project(self, x: Tensor) -> Tensor:
        """The nearest point of ball and pixel range; in l2 of the ball, then of the range: clamping moves every pixel towards the
        centre, so the radius still holds afterwards.
        """
        if self.norm == "linf":
            return x.clamp(*self.corners)
        if self.norm == "l0":
            return self._few_pixels(x)
        if self.norm == "l2":
            delta = self.along(x - self.centre)
            length = per_sample(distance(delta, "l2"), x)
            inside = self.centre + delta * (per_sample(self.eps, x) / length.clamp_min(1e-12)).clamp_max(1)
        else:
            return self._few_changes(self.along(x - self.centre))
        return inside.clamp(*self.bounds)

    def _few_pixels(self, x: Tensor) -> Tensor:
        """The nearest point that is in the ball and in the pixel range: the pixels stay that come nearest to ``x`` by it.

        Source: Croce & Hein 2019, arXiv:1909.05040, section 4.1.
        """
        inside = (x if self.movable is None else torch.where(self.movable, x, self.centre)).clamp(*self.bounds)
        nearer = over_channels((x - self.centre) ** 2 - (x - inside) ** 2)
        return torch.where(highest(nearer, self.eps), inside, self.centre)

    def _few_changes(self, delta: Tensor) -> Tensor:
        """The nearest point of the l1 ball and the pixel range to ``centre + delta``.

        Projecting onto ball and range in turn would waste budget: what the range cuts off, other pixels could use. The solution is
        sign(delta_i) * clip(|delta_i| - t, 0, room_i), with room the distance of pixel i from its bound.

        Source: Croce & Hein 2021 (arXiv:2103.01208), proposition 2.1.
        """
        some = max(1, _VALUES // max(1, math.prod(delta.shape[1:])))
        if len(delta) > some:
            parts = (slice(first, first + some) for first in range(0, len(delta), some))
            return torch.cat([self.select(part)._few_changes(delta[part]) for part in parts])
        low, high = self.bounds
        size, room = delta.abs(), torch.where(delta >= 0, high - self.centre, self.centre - low)
        threshold = l1_threshold(size.flatten(1), room.flatten(1), self.eps)
        # What is beyond the room is left to the clamp, which puts the pixel exactly at its bound.
        return self.moved((size - per_sample(threshold, size)).clamp_min_(0).copysign_(delta))

    def moved(self, delta: Tensor) -> Tensor:
        """``centre + delta`` in the pixel range, each pixel rounded towards the centre: an l1 norm is no larger for being stored.

        Rounded to the nearest, all the pixels of a plain image may be rounded the same way, and the errors of thousands add up.
        """
        low, high = self.bounds
        x = (self.centre + delta).clamp(*self.bounds)
        rounded_up = ((x - self.centre).abs() > delta.abs()) & (x > low) & (x < high)  # a pixel at its bound stays there
        less = (delta.abs() - torch.finfo(x.dtype).eps / 2).clamp_min(0).copysign(delta)
        return torch.where(rounded_up, self.centre + less, x)

    def steepest(self, gradient: Tensor, x: Tensor, count: Tensor | None = None) -> Tensor:
        """The direction of unit norm from ``x`` along which a linear function rises most: sign for linf, g/||g|| for l2.

        In l1 these are the signs of the largest entries among the pixels that can still move that way: one that its bound stops
        would take a place and not move (Tramer & Boneh 2019, arXiv:1904.13000, algorithm 1).

        Args:
            gradient: (B, *shape) of the function at ``x``.
            x: (B, *shape) inside the pixel range.
            count: (B,) in l1 how many entries, rounded down; by default 1 % of those that may change, and always at least one.
        """
        if self.norm == "linf":
            return gradient.sign()
        if self.norm == "l2":
            return gradient / per_sample(distance(gradient, "l2"), gradient).clamp_min(1e-30)
        low, high = self.bounds
        free = torch.where(gradient > 0, x < high, x > low)
        magnitude = torch.where(free, gradient.abs(), 0).flatten(1)
        if count is None:
            count = torch.full((len(x),), self.size // 100, device=x.device)
        last = (count.long() - 1).clamp(0, magnitude.shape[1] - 1).unsqueeze(1)
        threshold = magnitude.topk(int(last.max()) + 1, dim=1).values.gather(1, last)
        chosen = (magnitude >= threshold) & (magnitude > 0)
        signs = gradient.sign() * chosen.view_as(gradient)
        return signs / per_sample(distance(signs, "l1"), gradient).clamp_min(1)

    def random_point(self, rng: SampleRng) -> Tensor:
        """Uniform in the ball (for l1 a random direction and radius), cut to the pixel range."""
        radius = per_sample(self.eps, self.centre)
        offsets = random_offsets(radius, self.centre.shape[1:], self.norm, rng, self.centre.dtype, self.movable)
        return self.project(self.centre + offsets)

    def random_start(self, rng: SampleRng) -> Tensor:
        """A random point to start from; in l2 of random direction and distance. (Of a ball of many dimensions nearly all is at its
        edge: a start uniform in it costs a short attack steps.)
        """
        point = self.random_point(rng)
        if self.norm != "l2":
            return point
        return self.centre + per_sample(rng.uniform((1,), dtype=point.dtype).squeeze(1), point) * (point - self.centre)


@dataclass(frozen=True)
class StepSize:
    """The size of a step: ``pixels``, or, where that is None, a ``share`` of each sample's own eps."""

    pixels: float | None = None
    share: float = 1.0

    def within(self, ball: Ball) -> float | Tensor:
        """The size in pixel units, to be multiplied with a (B, *shape) direction."""
        return per_sample(self.share * ball.eps, ball.centre) if self.pixels is None else self.pixels


def l1_threshold(size: Tensor, room: Tensor, eps: Tensor) -> Tensor:
    """(A, 1) the least t >= 0 at which sum_i clip(size_i - t, 0, room_i) is no more than eps.

    The sum falls with t, linearly while the same entries are above 0 and the same ones are held by their room. So this is Newton's
    method, which has found t when a step leaves these as they were; where a step leads out of the interval that is known to hold t, the
    interval is halved.

    Args:
        size, room: (A, n), none negative.
        eps: (A,).
    """
    limit = eps.unsqueeze(1)
    low, high = torch.zeros_like(limit), size.amax(1, keepdim=True)
    at, newton = low, torch.zeros_like(limit, dtype=torch.bool)  # `newton`: whether a step of Newton's led here
    done, before = newton, (low, low)
    for _ in range(_MOST_STEPS):
        over = size - at
        excess = torch.minimum(over, room).clamp_min_(0).sum(1, keepdim=True) - limit
        positive = over > 0
        moving = (positive & (over < room)).count_nonzero(1).unsqueeze(1)
        counts = positive.count_nonzero(1).unsqueeze(1), moving
        above = excess > 0
        done = done | (newton & (counts[0] == before[0]) & (counts[1] == before[1])) | (~above & (at == 0)) | (excess == 0)
        low, high = torch.where(above, at, low), torch.where(above, high, at)
        following = at + excess / moving.clamp_min(1)
        done = done | ((moving > 0) & (following == at))
        newton = (moving > 0) & (following > low) & (following < high)
        following = torch.where(newton, following, (low + high) / 2)
        done = done | (following <= low) | (following >= high)
        if bool(done.all()):
            break
        before, at = counts, torch.where(done, at, following)
    return at
