"""What a network's robust accuracy really is, by attacks of the exam's own: an upper bound.

They know what the artefact is: each subject lends its twins, functions without the artefact and with a gradient. What the climbs
on these leave standing is climbed by finite differences of the network's own logits, with widths near eps, which see past waves
and steps. All points are judged on the network itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from exam.ascent import Ball, Loss, Network, climb, cross_entropy, gradient_of, margin, towards
from exam.lab import Subject

DRAWS = 10
"""Passes on which a network that draws random numbers is judged."""
STEPS = 40


class Judge:
    """Keeps, for each sample, the point at which the network is right least often."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.x, self.y = subject.test.x, subject.test.y
        self.ball = Ball(self.x, subject.norm, subject.eps)
        self.draws = DRAWS if self._draws_numbers() else 1
        self.clean = self.right = self._share_right(self.x, self.y)
        self.points = self.x.clone()

    def _draws_numbers(self) -> bool:
        with torch.no_grad():
            return not torch.equal(self.subject.model(self.x), self.subject.model(self.x))

    def _share_right(self, points: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            passes = [self.subject.model(points).argmax(1) == labels for _ in range(self.draws)]
        return torch.stack(passes).float().mean(0)

    @property
    def standing(self) -> Tensor:
        """The rows that are still worth a climb: all of them, where the answer to one depends on the others."""
        wanted = self.right > 0
        return (wanted | (self.subject.batchwise & wanted.any())).nonzero().squeeze(1)

    def see(self, points: Tensor, rows: Tensor) -> None:
        """Judge a point (R, 1, 8, 8) of each of the rows (R,)."""
        assert self.ball.rows(rows).holds(points).all()
        right = self._share_right(points, self.y[rows])
        better = right < self.right[rows]
        self.right = self.right.index_copy(0, rows[better], right[better])
        self.points[rows[better]] = points[better]

    def settled(self) -> float:
        """The share of right answers at the points that were kept; where the network draws numbers, in passes drawn anew."""
        if self.draws == 1:
            return float(self.right.mean())
        return float(torch.minimum(self._share_right(self.points, self.y), self._share_right(self.x, self.y)).mean())


def truth(subject: Subject, *, probe: bool) -> tuple[float, float]:
    """Clean accuracy, and an upper bound on robust accuracy; with ``probe``, by finite differences too."""
    judge = Judge(subject)
    for twin in subject.twins:
        for each in _climbs(judge, twin):
            each.run(judge, twin)
    if probe and judge.draws == 1 and not subject.batchwise:
        for width in (1.0, 0.3):
            _probe(judge, width)
    return float(judge.clean.mean()), judge.settled()


@dataclass(frozen=True)
class Climb:
    """On the rows (R,), from a start (R, 1, 8, 8)."""

    rows: Tensor
    loss: Loss
    start: Tensor

    def run(self, judge: Judge, twin: Network) -> None:
        """Climb on a twin, and show every fourth point to the judge."""
        slope = partial(gradient_of, twin, labels=judge.y[self.rows], loss=self.loss)
        seen = _each(4 if judge.draws == 1 else 10, partial(judge.see, rows=self.rows))
        climb(judge.ball.rows(self.rows), self.start, slope, steps=STEPS, seen=seen)


def _climbs(judge: Judge, twin: Network) -> Iterator[Climb]:
    """By the margin from several points, by the cross entropy, and towards every wrong class, each on what stands by then."""
    with torch.no_grad():
        clean = twin(judge.x)
    plans: list[tuple[Callable[[Tensor], Loss], bool]] = [
        (lambda rows: margin, False),
        *[(lambda rows: margin, True)] * 3,
        (lambda rows: cross_entropy, True),
        *[(lambda rows, rank=rank: towards(rank, clean[rows]), rank % 2 == 0) for rank in range(clean.shape[1] - 1)],
    ]
    for loss, random in plans:
        rows = judge.standing
        if not len(rows):
            return
        yield Climb(rows, loss(rows), judge.ball.rows(rows).random() if random else judge.x[rows])


def _each(period: int, see: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
    """Passes on every ``period``-th point."""
    count = 0

    def seen(points: Tensor) -> None:
        nonlocal count
        count += 1
        if count % period == 0:
            see(points)

    return seen


def _probe(judge: Judge, width: float) -> None:
    """A climb on what still stands, by central differences over ``width`` x eps in each pixel and some random directions."""
    rows = judge.standing
    if not len(rows):
        return
    ball, labels = judge.ball.rows(rows), judge.y[rows]
    length = width * (ball.eps if ball.norm == "linf" else ball.eps / 3)
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

    climb(ball, ball.x, slope, steps=8, seen=partial(judge.see, rows=rows))
