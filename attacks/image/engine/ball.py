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

STEEPEST_REVISIONS: Mapping[str, int] = MappingProxyType({"l1": 1})
"""The ``revisions`` of what moves by ``Ball.steepest``. Before 1, pixels that their bounds stop took a share of each step."""


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

    def select(self, rows: Tensor) -> Ball:
        """The balls of the samples ``rows`` (indices or mask)."""
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
    def _corners(self) -> tuple[Tensor, Tensor]:
        """A linf ball within the pixel range is a box: its lowest and its highest point."""
        radius = per_sample(self.eps, self.centre)
        radius = radius if self.movable is None else radius * self.movable
        return (self.centre - radius).clamp(*self.bounds), (self.centre + radius).clamp(*self.bounds)

    def project(self, x: Tensor) -> Tensor:
        """Project ``x`` into the balls, then into the pixel range. Clamping moves every pixel towards the centre, so the radius
        still holds afterwards.
        """
        if self.norm == "linf":
            return x.clamp(*self._corners)
        if self.norm == "l0":
            return self._few_pixels(x)
        if self.norm == "l2":
            delta = self.along(x - self.centre)
            length = per_sample(distance(delta, "l2"), x)
            inside = self.centre + delta * (per_sample(self.eps, x) / length.clamp_min(1e-12)).clamp_max(1)
        else:
            return self.moved(project_l1(self.along(x - self.centre), self.eps))
        return inside.clamp(*self.bounds)

    def _few_pixels(self, x: Tensor) -> Tensor:
        """The nearest point that is in the ball and in the pixel range: the pixels stay that come nearest to ``x`` by it.

        Source: Croce & Hein 2019, arXiv:1909.05040, section 4.1.
        """
        inside = (x if self.movable is None else torch.where(self.movable, x, self.centre)).clamp(*self.bounds)
        nearer = over_channels((x - self.centre) ** 2 - (x - inside) ** 2)
        return torch.where(highest(nearer, self.eps), inside, self.centre)

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
        threshold = magnitude.sort(1, descending=True).values.gather(1, last)
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


def project_l1(delta: Tensor, eps: Tensor) -> Tensor:
    """Euclidean projection of each row onto the l1 ball of radius eps.

    Source: Duchi et al. 2008, figure 1 (by sorting).
    """
    flat = delta.flatten(1)
    magnitude = flat.abs()
    ordered = magnitude.sort(dim=1, descending=True).values
    excess = ordered.cumsum(1) - eps.unsqueeze(1)
    count = torch.arange(1, flat.shape[1] + 1, device=flat.device, dtype=flat.dtype)
    last = ((ordered * count > excess).sum(1, keepdim=True) - 1).clamp_min(0)
    threshold = (excess.gather(1, last) / (last + 1)).clamp_min(0)
    outside = magnitude.sum(1, keepdim=True) > eps.unsqueeze(1)
    shrunk = flat.sign() * (magnitude - threshold).clamp_min(0)
    return torch.where(outside, shrunk, flat).view_as(delta)


def project_l1_in_box(delta: Tensor, low: Tensor, high: Tensor, eps: Tensor) -> Tensor:
    """Euclidean projection of each row onto {d : ||d||_1 <= eps, low <= d <= high}, for low <= 0 <= high.

    Projecting onto ball and box in turn would waste budget: what the box cuts off, other pixels could use. The solution is
    d_i = sign(delta_i) * clip(|delta_i| - t, 0, cap_i) with cap the room on that side. The norm falls with t, linearly
    between the points |delta_i| (a pixel becomes 0) and |delta_i| - cap_i (a pixel is no longer held by the box), so t
    comes from sorting these.

    Source: Croce & Hein 2021 (arXiv:2103.01208), proposition 2.1 and appendix A.
    """
    size = delta.flatten(1).abs()
    room = torch.where(delta >= 0, high, -low).flatten(1)
    bends, order = torch.cat([size, size - room], 1).sort(1, descending=True)
    # Coming down from t = inf (norm 0), each bend passed lets one more pixel grow as t falls, or stops one.
    growing = torch.where(order < size.shape[1], 1.0, -1.0).to(delta.dtype).cumsum(1)
    norm_at = ((bends[:, :-1] - bends[:, 1:]) * growing[:, :-1]).cumsum(1)
    norm_at = torch.cat([torch.zeros_like(norm_at[:, :1]), norm_at], 1)
    last = (norm_at <= eps.unsqueeze(1)).sum(1, keepdim=True) - 1  # the last bend at which the budget still holds
    left = (eps.unsqueeze(1) - norm_at.gather(1, last)) / growing.gather(1, last).clamp_min(1)
    threshold = (bends.gather(1, last) - left).clamp_min(0)
    within = (size.minimum(room).sum(1) <= eps).unsqueeze(1)
    shrunk = (size - torch.where(within, 0, threshold)).clamp_min(0).minimum(room)
    return torch.where(delta >= 0, shrunk.view_as(delta), -shrunk.view_as(delta))
