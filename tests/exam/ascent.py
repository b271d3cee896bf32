"""Projected ascent in plain torch, for adversarial training and for the exam's truth."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Norm = Literal["linf", "l2", "l1"]
Network = Callable[[Tensor], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
"""(N, K) logits, (N,) labels -> (N,), larger where the attack has come further."""


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The best wrong logit less the right one: above 0 where the sample is misclassified."""
    right = logits.gather(1, labels[:, None]).squeeze(1)
    return logits.scatter(1, labels[:, None], -torch.inf).amax(1) - right


def towards(rank: int, at: Tensor) -> Loss:
    """The margin of the wrong class that was ``rank``-th likeliest by the logits ``at``."""

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        order = at.scatter(1, labels[:, None], -torch.inf).argsort(1, descending=True)
        classes = order[:, rank : rank + 1]
        return (logits.gather(1, classes) - logits.gather(1, labels[:, None])).squeeze(1)

    return loss


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


@dataclass(frozen=True)
class Ball:
    """The points within ``eps`` of ``x`` (N, *shape) and within [0, 1]."""

    x: Tensor
    norm: Norm
    eps: float

    def project(self, points: Tensor) -> Tensor:
        """The bound first, then the box, which only brings a point nearer to ``x``."""
        delta = (points - self.x).flatten(1)
        if self.norm == "linf":
            delta = delta.clamp(-self.eps, self.eps)
        elif self.norm == "l2":
            delta = delta * (self.eps / delta.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp_max(1)
        else:
            delta = onto_l1(delta, self.eps)
        return (self.x + delta.view_as(self.x)).clamp(0, 1)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The direction of length 1 (in this norm) in which ``gradient`` climbs most; in l1, a tenth of the pixels share it."""
        flat = gradient.flatten(1)
        if self.norm == "linf":
            step = flat.sign()
        elif self.norm == "l2":
            step = flat / flat.norm(dim=1, keepdim=True).clamp_min(1e-12)
        else:
            at = flat.abs().topk(max(1, flat.shape[1] // 10), dim=1).indices
            step = torch.zeros_like(flat).scatter(1, at, flat.gather(1, at).sign()) / at.shape[1]
        return step.view_as(gradient)

    def random(self) -> Tensor:
        noise = torch.randn_like(self.x) if self.norm != "linf" else 2 * torch.rand_like(self.x) - 1
        length = {"linf": 1.0, "l2": 1 / math.sqrt(self.x[0].numel()), "l1": 1 / self.x[0].numel()}[self.norm]
        return self.project(self.x + self.eps * length * noise)

    def rows(self, rows: Tensor) -> Ball:
        return Ball(self.x[rows], self.norm, self.eps)

    def holds(self, points: Tensor) -> Tensor:
        """(N,) bool: within the bound, up to float32's rounding, and within the box."""
        order = {"linf": math.inf, "l2": 2.0, "l1": 1.0}[self.norm]
        near = (points - self.x).flatten(1).norm(order, dim=1) <= self.eps * (1 + 1e-6) + 1e-6
        return near & (points >= 0).flatten(1).all(1) & (points <= 1).flatten(1).all(1)


def onto_l1(delta: Tensor, eps: float) -> Tensor:
    """The nearest point of the l1 ball (Duchi et al. 2008)."""
    size = delta.abs()
    ordered = size.sort(1, descending=True).values
    excess = (ordered.cumsum(1) - eps) / torch.arange(1, delta.shape[1] + 1)
    last = (ordered > excess).sum(1, keepdim=True) - 1
    threshold = excess.gather(1, last.clamp_min(0)).clamp_min(0)
    return delta.sign() * (size - threshold).clamp_min(0)


def gradient_of(network: Network, points: Tensor, labels: Tensor, loss: Loss) -> Tensor:
    points = points.detach().requires_grad_()
    with torch.enable_grad():
        value = loss(network(points), labels)
        (gradient,) = torch.autograd.grad(value.sum(), points)
    return gradient.nan_to_num()


def climb(
    ball: Ball,
    start: Tensor,
    gradient: Network,
    *,
    steps: int,
    first: float = 0.5,
    seen: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """``steps`` steps along ``gradient(points)`` with a velocity, from ``first`` x eps down to a fiftieth of that.

    ``seen`` is shown each point.
    """
    points, velocity = start, torch.zeros_like(start)
    for step in range(steps):
        direction = ball.steepest(gradient(points))
        velocity = 0.7 * velocity + direction
        length = first * (0.02 + 0.98 * (1 + math.cos(math.pi * step / steps)) / 2)
        along = ball.steepest(velocity) if ball.norm != "l1" else direction
        points = ball.project(points + length * ball.eps * along).detach()
        if seen:
            seen(points)
    return points


def adversarial(network: Network, ball: Ball, labels: Tensor, *, steps: int, loss: Loss = cross_entropy) -> Tensor:
    """PGD from a random point, for training."""
    return climb(ball, ball.random(), lambda points: gradient_of(network, points, labels, loss), steps=steps)
