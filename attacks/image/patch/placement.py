"""What the attacks with a patch share: where it may lie, which places are worth a try, and how it is put into an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from robustkd.attacks.image.engine.ball import Ball
from robustkd.contracts import Attack, ThreatModel, UsageError
from robustkd.contracts.random import SampleRng
from robustkd.contracts.region import Patch, rectangles
from robustkd.contracts.threat import Norm
from robustkd.lazy import torch
from robustkd.scoring.distances import per_sample

if TYPE_CHECKING:
    from torch import Tensor


class PatchAttack(Attack):
    """An attack with a patch: at the given place, or, where the threat model leaves that to the attacker, at one of its own."""

    inputs = "images"
    norms: ClassVar[tuple[Norm, ...]] = ("linf",)
    regions = ("given", "chosen")

    @override
    def refusal(self, threat: ThreatModel) -> str | None:
        if reason := super().refusal(threat):
            return reason
        return None if isinstance(threat.where, Patch) else "needs a threat model with a patch: where: {patch: 5, place: worst}"


def sides_of(threat: ThreatModel, shape: Sequence[int]) -> tuple[int, int]:
    """Height and width of the threat model's patch in images (C, H, W).

    Raises:
        UsageError: it has none, or one that does not fit.
    """
    if not isinstance(threat.where, Patch):
        raise UsageError("the threat model has no patch", fix="where: {patch: 5, place: worst}")
    threat.where.require_fits(shape)
    return threat.where.sides(shape)


def ball_at(ball: Ball, places: Tensor, sides: tuple[int, int]) -> Ball:
    """The ball in which the patches at (B, 2) ``places`` may change, and nothing else."""
    return replace(ball, movable=rectangles(places, sides, ball.centre.shape[1:]))


def random_places(ball: Ball, sides: tuple[int, int], rng: SampleRng) -> Tensor:
    """(B, 2) rows and columns of the top left corners: uniform, or the given ones where the ball has such."""
    if ball.movable is not None:
        return torch.stack(ball.box[:2], 1)
    room = [size - side + 1 for size, side in zip(ball.centre.shape[2:], sides, strict=True)]
    return torch.stack([rng.integers((), many) for many in room], 1)


def promising_places(ball: Ball, gradient: Tensor, sides: tuple[int, int], count: int) -> Tensor:
    """(B, count, 2) the places at which a linear function with this gradient gains most; the given one where the ball has such.

    The gain of a pixel is |g| times the way that it may go. Each place is at least half a patch from those before it, as long as there
    is such a one.
    """
    if ball.movable is not None:
        return torch.stack(ball.box[:2], 1).unsqueeze(1).expand(-1, count, -1)
    furthest = ball.project(ball.centre + per_sample(ball.eps, gradient) * gradient.sign())
    gain = (gradient * (furthest - ball.centre)).sum(1, keepdim=True)
    score = torch.nn.functional.avg_pool2d(gain, sides, stride=1).squeeze(1)
    rows, columns = (torch.arange(size, device=score.device) for size in score.shape[1:])
    places = []
    for _ in range(count):
        best = score.flatten(1).argmax(1)
        top, left = best // score.shape[2], best % score.shape[2]
        places.append(torch.stack([top, left], 1))
        near = ((rows - top.unsqueeze(1)).abs() < max(1, sides[0] / 2)).unsqueeze(2) & (
            (columns - left.unsqueeze(1)).abs() < max(1, sides[1] / 2)
        ).unsqueeze(1)
        # Once all of them have been near another, the order stays what it was among those that were not tried themselves.
        score = score - near * 2 * (score.amax((1, 2), keepdim=True).abs() + gain.abs().amax((1, 2, 3)).view(-1, 1, 1) + 1)
    return torch.stack(places, 1)


def pasted(images: Tensor, content: Tensor, places: Tensor) -> Tensor:
    """The (B, C, H, W) images with (B, C, h, w) contents at (B, 2) places."""
    sides = (content.shape[2], content.shape[3])
    down, right = (
        (torch.arange(size, device=images.device) - places[:, axis : axis + 1]).clamp(0, side - 1)
        for axis, (size, side) in enumerate(zip(images.shape[2:], sides, strict=True))
    )
    each = torch.arange(len(images), device=images.device).view(-1, 1, 1)
    values = content.permute(0, 2, 3, 1)[each, down.unsqueeze(2), right.unsqueeze(1)].permute(0, 3, 1, 2)
    return torch.where(rectangles(places, sides, images.shape[1:]), values, images)


def pixel_range(bounds: tuple[float | Tensor, float | Tensor]) -> tuple[float, float]:
    """The least and the greatest value of a pixel; a patch is for images, whose pixels share one range."""
    low, high = (float(torch.as_tensor(bound).flatten()[0]) for bound in bounds)
    return low, high


def random_content(
    like: Tensor, sides: tuple[int, int], bounds: tuple[float | Tensor, float | Tensor], rng: SampleRng
) -> Tensor:
    """(B, C, h, w) uniform in the pixel range."""
    low, high = pixel_range(bounds)
    return rng.uniform((like.shape[1], *sides), low, high, dtype=like.dtype)
