"""What a network's robust accuracy really is, by attacks of the exam's own: an upper bound.

They know what the artefact is: each subject lends its twins, functions without the artefact and with a gradient. What the climbs
on these leave standing is climbed by finite differences of the network's own logits, with widths near eps, which see past waves
and steps. All points are judged on the network itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from exam.ascent import Ball, Loss, Network, climb, cross_entropy, gradient_of, margin, towards
from exam.lab import Subject

DRAWS = 10
"""Passes on which a network that draws random numbers is judged."""


class Judge:
    """Keeps, for each sample, the point at which the network is right least often."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.x, self.y = subject.test.x, subject.test.y
        self.ball = Ball(self.x, subject.norm, subject.eps)
        self.draws = DRAWS if self._draws_numbers() else 1
        self.right = self.share_right(self.x)
        self.clean = self.right
        self.points = self.x

    def _draws_numbers(self) -> bool:
        with torch.no_grad():
            return not torch.equal(self.subject.model(self.x), self.subject.model(self.x))

    def share_right(self, points: Tensor) -> Tensor:
        with torch.no_grad():
            passes = [self.subject.model(points).argmax(1) == self.y for _ in range(self.draws)]
        return torch.stack(passes).float().mean(0)

    def see(self, points: Tensor) -> None:
        """Judge a point of each sample (N, 1, 8, 8); those outside the ball do not count."""
        assert self.ball.holds(points).all()
        right = self.share_right(points)
        better = right < self.right
        self.right = torch.where(better, right, self.right)
        self.points = torch.where(better[:, None, None, None], points, self.points)

    @property
    def standing(self) -> Tensor:
        return (self.right >= 0.5).nonzero().squeeze(1)

    def settled(self) -> float:
        """The share of right answers at the points that were kept; where the network draws numbers, in passes drawn anew."""
        if self.draws == 1:
            return float(self.right.mean())
        return float(torch.minimum(self.share_right(self.points), self.share_right(self.x)).mean())


def truth(subject: Subject, *, probe: bool) -> tuple[float, float]:
    """Clean accuracy, and an upper bound on robust accuracy; with ``probe``, by finite differences too."""
    judge = Judge(subject)
    for twin, loss, start in _climbs(judge):
        if not len(judge.standing):
            break
        seen = Every(judge, 4 if judge.draws == 1 else 10)
        judge.see(climb(judge.ball, start, partial(gradient_of, twin, labels=judge.y, loss=loss), steps=40, seen=seen))
    if probe and judge.draws == 1 and not subject.batchwise:
        for width in (1.0, 0.3):
            _probe(judge, width)
    return float(judge.clean.mean()), judge.settled()


def _climbs(judge: Judge) -> Iterator[tuple[Network, Loss, Tensor]]:
    for twin in judge.subject.twins:
        with torch.no_grad():
            clean = twin(judge.x)
        likely = min(4, clean.shape[1] - 1)
        yield twin, margin, judge.x
        for _ in range(2):
            yield twin, margin, judge.ball.random()
        yield twin, cross_entropy, judge.ball.random()
        for rank in range(likely):
            yield twin, towards(rank, clean), judge.x if rank % 2 else judge.ball.random()


class Every:
    """Shows the judge each ``period``-th point of a climb."""

    def __init__(self, judge: Judge, period: int) -> None:
        self.judge, self.period, self.count = judge, period, 0

    def __call__(self, points: Tensor) -> None:
        self.count += 1
        if self.count % self.period == 0:
            self.judge.see(points)


def _probe(judge: Judge, width: float) -> None:
    """A climb on what still stands, by central differences over ``width`` x eps in each pixel and some random directions."""
    rows = judge.standing
    if not len(rows):
        return
    ball, labels = judge.ball.rows(rows), judge.y[rows]
    length = width * (judge.ball.eps if judge.ball.norm == "linf" else judge.ball.eps / 3)
    pixels = judge.x[0].numel()

    def slope(points: Tensor) -> Tensor:
        # A network of many small steps notices it more when all pixels move at once.
        signs = torch.where(torch.rand(pixels, pixels) < 0.5, -1.0, 1.0)
        found = torch.zeros(len(points), pixels)
        with torch.no_grad():
            for directions, scale in ((torch.eye(pixels), 1.0), (signs, 0.5)):
                moves = scale * length * directions.view(1, pixels, *points.shape[1:])
                up, down = (
                    margin(judge.subject.model(moved.flatten(0, 1)), labels.repeat_interleave(pixels)).view(-1, pixels)
                    for moved in (points[:, None] + moves, points[:, None] - moves)
                )
                found += ((up - down) / (up - down).abs().amax(1, keepdim=True).clamp_min(1e-12)) @ directions * scale
        return found.view_as(points)

    def seen(points: Tensor) -> None:
        every = judge.points.clone()
        every[rows] = points
        judge.see(every)

    climb(ball, ball.x, slope, steps=8, seen=seen)
