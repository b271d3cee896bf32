"""The last step of every minimum-norm attack: move its example to the nearest boundary, then closer by binary search.

A search that ran out of steps stops a little beyond the boundary, and a little off the nearest point of it. Both are mended:

1. ``project_to_boundary``: the boundaries are linearised at the example (as in FAB and DeepFool), and the point nearest to the
   clean image on any of them, and two on the way to it, are tried.
2. ``binary_search`` along the segment from the clean image to the example, whose part that holds the boundary is halved.

In L0 there is no segment: ``sparsify`` searches for the number of changed pixels, and the largest changes stay.

Source: the linearisation is step 5 of algorithm 1 in Croce & Hein 2020 (arXiv:1907.02044) with alpha = 1, the halving is
their final search (section 3.3); the one for L0 is that of Pintor et al. 2021 (arXiv:2102.12827) for their starting points.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustkd.attacks.image.engine.minimum_norm.linearise import boundaries, onto_hyperplane
from robustkd.attacks.image.engine.minimum_norm.nearest import MinNormProblem, Nearest
from robustkd.lazy import torch
from robustkd.scoring.distances import per_sample
from robustkd.scoring.pixels import largest

if TYPE_CHECKING:
    from torch import Tensor

_HALVINGS = 10  # to a thousandth of the distance
_CLASSES = 9  # other classes whose boundaries are looked at, the highest ones
_SHARES = (1.0, 0.5, 0.25)  # of the way to the linearised boundary
_BEYOND = 1.01  # how far beyond it, as a share of the clean image's value: on it, half of the points are not adversarial


def refine(problem: MinNormProblem, rows: Tensor, best: Nearest) -> Nearest:
    """Closer examples: at most 14 forward passes, and a backward pass for each of 9 classes; only for samples with an example.

    Args:
        problem: names the norm that is minimised, and queries the target.
        rows: (A,) which samples of the batch.
        best: (A,) the nearest examples found for them.
    """
    hit = best.norm.isfinite()
    if not bool(hit.any()):
        return best
    found, rows = best if bool(hit.all()) else best.select(hit), rows[hit]
    shorten = sparsify if problem.norm == "l0" else binary_search
    return best.updated(hit, shorten(problem, rows, project_to_boundary(problem, rows, found)))


def project_to_boundary(problem: MinNormProblem, rows: Tensor, best: Nearest) -> Nearest:
    """Try the points nearest to the clean images on the boundaries that are linearised at the examples."""
    start, closest = best.x, _on_the_nearest_boundary(problem, rows, best.x)
    for share in _SHARES:
        best = keep_nearer(problem, rows, best, start + share * (closest - start))
    return best


def _on_the_nearest_boundary(problem: MinNormProblem, rows: Tensor, start: Tensor) -> Tensor:
    """(A, *shape) the points nearest to the clean images on the boundaries that are linearised at ``start``."""
    clean = problem.clean_of(rows)
    logits, planes = boundaries(problem, start, rows, _CLASSES)
    tolerance = problem.decision_tolerance(logits)
    closest: Nearest | None = None
    for value, gradient in planes:
        at_clean = _BEYOND * (value + (gradient * (clean - start)).flatten(1).sum(1) - tolerance)
        projection = onto_hyperplane(clean, at_clean, gradient, problem.norm, problem.bounds)
        moved = projection - clean
        # A boundary on whose far side the clean image lies already, or that the pixel range keeps out of reach, tells nothing.
        useful = (at_clean < 0) & ((gradient * moved).flatten(1).sum(1) > -at_clean / _BEYOND)
        those = Nearest(projection, torch.where(useful, problem.length(moved), torch.inf))
        closest = those if closest is None else closest.or_nearer(those)
    assert closest is not None  # there are two classes at least
    return closest.x


def binary_search(problem: MinNormProblem, rows: Tensor, best: Nearest) -> Nearest:
    """Search the segment between the clean image and the example for the boundary."""
    clean, example = problem.clean_of(rows), best.x
    low, high = torch.zeros_like(best.norm), torch.ones_like(best.norm)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        x = (clean + per_sample(middle, example) * (example - clean)).clamp(*problem.bounds)
        adversarial = problem.adversarial(problem.oracle.logits(x, rows), rows)
        low, high = torch.where(adversarial, low, middle), torch.where(adversarial, middle, high)
        best = Nearest(
            torch.where(per_sample(adversarial, x), x, best.x), torch.where(adversarial, problem.length(x - clean), best.norm)
        )
    return best


def sparsify(problem: MinNormProblem, rows: Tensor, best: Nearest) -> Nearest:
    """Search for the smallest number of changed pixels that is still adversarial; the largest changes are kept."""
    clean, delta = problem.clean[rows], best.x - problem.clean[rows]
    low, high = torch.zeros_like(best.norm), best.norm
    for _ in range(_HALVINGS):
        middle = ((low + high) / 2).ceil()
        x = clean + largest(delta, middle)
        adversarial = problem.adversarial(problem.oracle.logits(x, rows), rows)
        low, high = torch.where(adversarial, low, middle), torch.where(adversarial, middle, high)
        best = Nearest(
            torch.where(per_sample(adversarial, x), x, best.x), torch.where(adversarial, problem.length(x - clean), best.norm)
        )
    return best


def keep_nearer(problem: MinNormProblem, rows: Tensor, best: Nearest, x: Tensor) -> Nearest:
    """``best`` with ``x`` in its place wherever that is adversarial and nearer: one forward pass."""
    adversarial = problem.adversarial(problem.oracle.logits(x, rows), rows)
    length = problem.length(x - problem.clean_of(rows))
    return best.or_nearer(Nearest(x, torch.where(adversarial, length, torch.inf)))
