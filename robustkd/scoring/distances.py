"""Distances between images, one number a sample."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from robustkd.contracts.image_changes import ImageChange
from robustkd.contracts.random import SampleRng
from robustkd.contracts.threat import Budget, Norm, ThreatModel
from robustkd.lazy import torch
from robustkd.scoring.pixels import highest, over_channels

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = 1e-6
"""How far float32 rounding may carry a pixel outside the pixel range, and a sum from its value, as a share of it."""

PIXEL_ROUNDING = 2.0**-25
"""What storing a pixel of [0, 1] in float32 changes at most: half the distance of its neighbours below 1."""

_Measured = TypeVar("_Measured", "Tensor", np.ndarray)


def within(spent: _Measured, allowed: _Measured | float, norm: Norm, shape: Sequence[int]) -> _Measured:
    """(B,) whether distances are inside their budgets, but for float32 rounding.

    The stored image is x + d rounded pixel by pixel, by ``PIXEL_ROUNDING`` at most. The norm of such an error is that much in linf,
    sqrt(n) times as much in l2 and n times in l1, for the n values of an image: in l1 9e-5 for 3 x 32 x 32, 5e-3 for 3 x 224 x 224.
    It does not grow with the budget; the rounding of the sum, which is measured by ``distance``, does.

    Args:
        spent: (B,) distances.
        allowed: (B,) budgets, or one for all.
        norm: of both.
        shape: of one image.
    """
    values = math.prod(shape)
    roundings = {"linf": 1.0, "l2": math.sqrt(values), "l1": float(values), "l0": 0.0}[norm]
    return spent <= allowed * (1 + TOLERANCE) + max(TOLERANCE, PIXEL_ROUNDING * roundings)


def spent_of(budget: Budget, clean: Tensor, adversarial: Tensor, extras: Mapping[str, Tensor]) -> Tensor:
    """(B,) what adversarial images spend of a budget of images.

    Args:
        clean, adversarial: (B, *shape).
        extras: what the attack returned beside the images.

    Raises:
        AttackError: the budget is one of transforms, and ``extras`` lacks their parameters.
    """
    if isinstance(budget, ImageChange):
        return budget.distance(clean, adversarial, extras)
    return distance(adversarial - clean, ThreatModel(budget=budget).norm)


def inside(budget: Budget, spent: _Measured, allowed: _Measured | float, shape: Sequence[int]) -> _Measured:
    """(B,) whether what was spent of a budget of images is allowed, but for float32 rounding.

    Args:
        spent: (B,) as ``spent_of`` gives it.
        allowed: (B,) eps of each sample, or one for all.
        shape: of one image.
    """
    if isinstance(budget, ImageChange):
        return budget.within(spent, allowed)
    return within(spent, allowed, ThreatModel(budget=budget).norm, shape)


def distance(difference: Tensor, norm: Norm) -> Tensor:
    """The norm of each row: (B, *shape) -> (B,). ``l0`` counts the pixels that differ in any channel."""
    if norm == "l0":
        changed = (difference != 0).any(dim=1) if difference.ndim > 3 else difference != 0
        return changed.flatten(1).sum(1).to(difference.dtype)
    flat = difference.flatten(1)
    if norm == "linf":
        return flat.abs().amax(1)
    if norm == "l1":
        # `vector_norm` adds up one value after the other and is off by 2e-5 at 3 x 224 x 224; `sum` adds in pairs: 1e-7.
        return flat.abs().sum(1)
    length: Tensor = torch.linalg.vector_norm(flat, dim=1)
    return length


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """(B,) reshaped to (B, 1, .., 1) so that it broadcasts over the samples of ``like``."""
    return values.view(-1, *([1] * (like.ndim - 1)))


def random_offsets(
    radius: float | Tensor,
    shape: Sequence[int],
    norm: Norm,
    rng: SampleRng,
    dtype: torch.dtype,
    movable: Tensor | None = None,
) -> Tensor:
    """(B, *shape), one for each sample of ``rng``: uniform in a ball around 0 (for l1 a random direction and length; for l0 as many
    random pixels as it allows, each moved by a uniform number in [-1, 1]).

    Args:
        radius: of all balls, or of each, shaped to broadcast over ``shape``.
        movable: (B, ..) bool, the only entries that are not 0, of each sample equally many.
    """
    values = math.prod(shape)
    if norm == "linf":
        offsets = radius * rng.uniform(shape, -1, 1, dtype=dtype)
        return offsets if movable is None else offsets * movable
    if norm == "l0":
        order = rng.uniform(shape, dtype=dtype)
        score = over_channels(order if movable is None else torch.where(movable, order, -1))
        count = torch.as_tensor(radius, dtype=dtype, device=score.device).flatten().expand(len(score))
        offsets = highest(score, count) * rng.uniform(shape, -1, 1, dtype=dtype)
        return offsets if movable is None else offsets * movable
    direction = rng.normal(shape, dtype=dtype)
    if movable is not None:
        direction, values = direction * movable, int(movable[:1].expand(1, *shape).sum())
    direction = direction / per_sample(distance(direction, norm), direction)
    length = rng.uniform((1,), dtype=dtype).squeeze(1) ** (1 / values if norm == "l2" else 1)
    return radius * per_sample(length, direction) * direction
