"""What the analyses share that look at samples a few at a time, and those of ensembles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from robustkd.contracts import Batch, Target, TargetError
from robustkd.lazy import torch
from robustkd.targets import ImageTarget

if TYPE_CHECKING:
    from torch import Tensor

BATCH = 256


def members_of(target: Target, analysis: str) -> Sequence[ImageTarget]:
    """The members of an ensemble of at least two.

    Raises:
        TargetError: it is no such thing.
    """
    members = [member for member in target.members if isinstance(member, ImageTarget)]
    if len(members) < 2:
        raise TargetError(
            f"{analysis} is about the members of an ensemble, this is a {target.kind}", fix="list ensembles in its 'defenses'"
        )
    return members


def all_right(members: Sequence[ImageTarget], batch: Batch, most: int) -> Batch:
    """The first ``most`` samples that every member classifies rightly, so the ensemble does too; without the logits, which are
    the ensemble's.

    Raises:
        TargetError: there are none.
    """
    right = torch.cat([_all_right(members, batch.inputs[rows], batch.labels[rows]) for rows in _parts(len(batch))])
    rows = right.nonzero().squeeze(1)[:most]
    if not len(rows):
        raise TargetError("there is no sample that every member classifies rightly", fix="train the members longer")
    return replace(batch.select(rows), logits=None)


def first_samples(batch: Batch, most: int) -> Batch:
    """The first samples, ``most`` of them where there are so many."""
    return batch.select(torch.arange(min(most, len(batch)), device=batch.inputs.device))


def parts(batch: Batch, size: int = BATCH) -> list[Batch]:
    """The batch in pieces that fit."""
    return [batch.select(rows) for rows in _parts(len(batch), size)]


def _parts(count: int, size: int = BATCH) -> list[slice]:
    return [slice(first, min(first + size, count)) for first in range(0, count, size)]


def _all_right(members: Sequence[ImageTarget], x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.stack([member(x).argmax(1) == y for member in members]).all(0)


def names_of(members: Sequence[ImageTarget]) -> list[str]:
    """What their rows and columns are called."""
    return [f"member {number}" for number in range(len(members))]


def mean_over_pairs(values: Sequence[Sequence[float]]) -> float:
    """The mean of the N x N part of a matrix of N rows without its diagonal."""
    count = len(values)
    return sum(values[i][j] for i in range(count) for j in range(count) if i != j) / (count * (count - 1))
