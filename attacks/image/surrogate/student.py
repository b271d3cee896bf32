"""A smooth student of a target's answers, in the neighbourhood of given images.

    minimize   |s(x) - z(x)|^2 / var z   +   |(s(x + d) - s(x)) - (z(x + d) - z(x))|^2 / var (difference)

over images x and points x + d of their balls, for the student's logits s and the target's z. The second term says how the target's
answer changes inside a ball, which is what an attack on the student has to know. Without it the differences between classes, which
are larger, would be all that is learnt.

The points are drawn at random first. Then rounds follow in which the student is attacked and the target is asked about the result:
so the student learns where it was wrong (Papernot et al. 2017, section 4.3, with attacks in the place of the Jacobian).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from robustkd.lazy import F, nn, torch
from robustkd.targets.training import adam, fit

if TYPE_CHECKING:
    from torch import Tensor

Points: TypeAlias = "Callable[[nn.Module], Tensor]"
"""Gives (N, *shape) points around the images, made on the student."""


def make_student(shape: Sequence[int], num_classes: int, width: int) -> nn.Module:
    """An untrained smooth network: convolutions for images of at least 4 x 4 pixels, else two hidden layers.

    Args:
        shape: of one input.
        num_classes: how many outputs.
        width: channels of the first convolution; a hidden layer has eight times as many units.
    """
    if len(shape) != 3 or min(shape[1:]) < 4:
        hidden = 8 * width
        return nn.Sequential(
            nn.Flatten(), nn.LazyLinear(hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, num_classes)
        )
    return nn.Sequential(
        nn.Conv2d(shape[0], width, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1, stride=2),
        nn.SiLU(),
        nn.Conv2d(2 * width, 4 * width, 3, padding=1, stride=2),
        nn.SiLU(),
        nn.Flatten(),
        nn.LazyLinear(num_classes),
    )


class QueriedPoints:
    """Images, points around them, and the target's answers to both.

    Attributes:
        images: (N, *shape).
        answers: (N, K), scaled.
        near: (P, N, *shape) points around each image.
        near_answers: (P, N, K), scaled.
    """

    def __init__(self, target: Callable[[Tensor], Tensor], images: Tensor) -> None:
        self._target = target
        self.images = images
        raw = self._asked(images)
        # Scaled once, by what the first answers are: what is added later must mean the same.
        self._scale = raw.std().clamp_min(torch.finfo(raw.dtype).tiny)
        self.answers = raw / self._scale
        self.near = images.new_empty((0, *images.shape))
        self.near_answers = self.answers.new_empty((0, *self.answers.shape))

    def add(self, points: Tensor) -> None:
        """Ask the target about (N, *shape) points, one around each image."""
        self.near = torch.cat([self.near, points[None]])
        self.near_answers = torch.cat([self.near_answers, (self._asked(points) / self._scale)[None]])

    def _asked(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            # What is the same for all classes moves no decision.
            answers = torch.cat([self._target(part) for part in x.split(256)]).float()
            centred: Tensor = answers - answers.mean(1, keepdim=True)
            return centred


def train_student(student: nn.Module, queried: QueriedPoints, steps: int, batch_size: int = 64, lr: float = 3e-3) -> None:
    """Train the student on the target's answers. It draws from torch's generator."""
    differences = queried.near_answers - queried.answers
    tiny = torch.finfo(differences.dtype).tiny
    between, inside = queried.answers.square().mean().clamp_min(tiny), differences.square().mean().clamp_min(tiny)
    count, points = len(queried.images), len(queried.near)

    def loss() -> Tensor:
        rows = torch.randint(count, (min(batch_size, count),)).to(queried.images.device)
        which = torch.randint(points, (len(rows),)).to(queried.images.device)
        here, there = student(torch.cat([queried.images[rows], queried.near[which, rows]]).float()).chunk(2)
        answers = F.mse_loss(here, queried.answers[rows]) / between
        return answers + F.mse_loss(there - here, differences[which, rows]) / inside

    student.train()
    fit(adam(student.parameters(), lr), (loss() for _ in range(steps)), _cosine(lr, steps).__getitem__)
    student.eval().requires_grad_(False)


def _cosine(lr: float, steps: int) -> list[float]:
    """The learning rate of each step, which falls along half a cosine: each from the one before, to the bit as torch's schedule does."""
    rates = [lr]
    for step in range(1, steps):
        fall = (1 + math.cos(math.pi * step / steps)) / (1 + math.cos(math.pi * (step - 1) / steps))
        rates.append(fall * rates[-1])
    return rates


def distil_student(
    target: Callable[[Tensor], Tensor],
    images: Tensor,
    num_classes: int,
    *,
    near: Sequence[Tensor],
    attacked: Sequence[Points],
    width: int,
    steps: int,
) -> nn.Module:
    """A student of ``target``, trained anew after each round of points.

    Args:
        target: (B, *shape) -> (B, K) logits. It is asked about each image and each point once.
        images: (N, *shape) that it is asked about.
        num_classes: K.
        near: (N, *shape) each, points around the images, for the first round.
        attacked: makes the points of each further round.
        width: of the student.
        steps: of each round's training.
    """
    queried = QueriedPoints(target, images)
    for points in near:
        queried.add(points)
    student = make_student(images.shape[1:], num_classes, width)
    student(images[:1].float().cpu())  # sets the size of a lazy layer, with the CPU's random numbers on every device
    student.to(images.device)
    with torch.enable_grad():
        train_student(student, queried, steps)
        for points_of in attacked:
            queried.add(points_of(student))
            student.requires_grad_(True)
            train_student(student, queried, steps)
    return student
