"""The last step of every minimum-norm attack: from the nearest example known to the nearest one around it.

A search that ran out of steps stops a little beyond the boundary, and a little off the nearest point of it. Both show in the
point that it found:

1. The boundaries linearised there (as FAB and DeepFool see them) say where the clean image is nearest to one of them. That
   point, and two on the way to it, are tried.
2. What is left is a segment from the clean image to an example; its part that holds the boundary is halved a few times.

In L0 there is no segment: there the number of changed pixels is halved, and the largest changes stay.

Source: the linearisation is step 5 of algorithm 1 in Croce & Hein 2020 (arXiv:1907.02044) with alpha = 1, the halving is
their final search (section 3.3); the one for L0 is that of Pintor et al. 2021 (arXiv:2102.12827) for their starting points.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustkd.attacks.image.engine.minimum_norm.linearise import boundaries, onto_hyperplane
from robustkd.attacks.image.engine.minimum_norm.nearest import Nearest, Question
from robustkd.attacks.image.engine.minimum_norm.sparse import largest
from robustkd.lazy import torch
from robustkd.scoring.distances import per_sample

if TYPE_CHECKING:
    from torch import Tensor

_HALVINGS = 10  # to a thousandth of the distance
_CLASSES = 9  # other classes whose boundaries are looked at, the highest ones
_SHARES = (1.0, 0.5, 0.25)  # of the way to the linearised boundary
_BEYOND = 1.01  # how far beyond it, as a share of the clean image's value: on it, half of the points are not adversarial


def finish(question: Question, rows: Tensor, found: Nearest) -> Nearest:
    """At most 14 forward passes, and a backward pass for each of 9 classes; only for samples with an example.

    Args:
        question: what is minimised.
        rows: (A,) which samples of the batch.
        found: (A,) the nearest examples known of them.
    """
    hit = found.norm.isfinite()
    if not bool(hit.any()):
        return found
    near, rows = found.select(hit), rows[hit]
    shorten = thin if question.norm == "l0" else tighten
    return found.updated(hit, shorten(question, rows, slide(question, rows, near)))


def slide(question: Question, rows: Tensor, near: Nearest) -> Nearest:
    """Along the boundaries as they look from the examples, to where the clean images are nearest to one of them."""
    clean = question.clean[rows]
    logits, value, gradient = boundaries(question, _CLASSES)(near.x, rows)
    at_clean = value + (gradient * (clean - near.x).unsqueeze(1)).flatten(2).sum(2) - question.slack(logits).unsqueeze(1)
    at_clean = _BEYOND * at_clean
    each = clean.unsqueeze(1).expand_as(gradient).flatten(0, 1)
    aims = onto_hyperplane(each, at_clean.flatten(), gradient.flatten(0, 1), question.norm, question.bounds)
    gained = (gradient.flatten(0, 1) * (aims - each)).flatten(1).sum(1).view_as(value)
    # A boundary on whose far side the clean image lies already, or that the pixel range keeps out of reach, tells nothing.
    useful = (at_clean < 0) & (gained > -at_clean / _BEYOND)
    closest = torch.where(useful, question.length(aims - each).view_as(value), torch.inf).argmin(1)
    aim = aims.view_as(gradient)[torch.arange(len(rows), device=rows.device), closest]
    start = near.x
    for share in _SHARES:
        near = nearer(question, rows, near, start + share * (aim - start))
    return near


def tighten(question: Question, rows: Tensor, near: Nearest) -> Nearest:
    """Halve the part of the segment from the clean image that holds the boundary."""
    clean, far = question.clean[rows], near.x
    low, high = torch.zeros_like(near.norm), torch.ones_like(near.norm)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        x = (clean + per_sample(middle, far) * (far - clean)).clamp(*question.bounds)
        there = question.adversarial(question.oracle.logits(x, rows), rows)
        low, high = torch.where(there, low, middle), torch.where(there, middle, high)
        near = Nearest(torch.where(per_sample(there, x), x, near.x), torch.where(there, question.length(x - clean), near.norm))
    return near


def thin(question: Question, rows: Tensor, near: Nearest) -> Nearest:
    """Halve the range of how many of the changed pixels are needed, the largest changes first."""
    clean, delta = question.clean[rows], near.x - question.clean[rows]
    low, high = torch.zeros_like(near.norm), near.norm
    for _ in range(_HALVINGS):
        middle = ((low + high) / 2).ceil()
        x = clean + largest(delta, middle)
        there = question.adversarial(question.oracle.logits(x, rows), rows)
        low, high = torch.where(there, low, middle), torch.where(there, middle, high)
        near = Nearest(torch.where(per_sample(there, x), x, near.x), torch.where(there, question.length(x - clean), near.norm))
    return near


def nearer(question: Question, rows: Tensor, near: Nearest, x: Tensor) -> Nearest:
    """With ``x`` wherever it is adversarial and nearer: a forward pass."""
    there = question.adversarial(question.oracle.logits(x, rows), rows)
    length = question.length(x - question.clean[rows])
    better = there & (length < near.norm)
    return Nearest(torch.where(per_sample(better, x), x, near.x), torch.where(better, length, near.norm))
