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
from robustkd.attacks.image.engine.minimum_norm.nearest import MinNormProblem, Nearest, in_parts
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
    everybody = bool(hit.all())
    found, rows = (best, rows) if everybody else (best.select(hit), rows[hit])
    shorten = sparsify if problem.norm == "l0" else binary_search
    found = shorten(problem, rows, project_to_boundary(problem, rows, found))
    return found if everybody else best.updated(hit, found)


def project_to_boundary(problem: MinNormProblem, rows: Tensor, best: Nearest) -> Nearest:
    """Try the points nearest to the clean images on the boundaries that are linearised at the examples."""
    closest = _on_the_nearest_boundary(problem, rows, best.x)
    nearest = best.copy()
    for share in _SHARES:
        keep_nearer(problem, rows, nearest, between(best.x, closest, share))
    return nearest


def _on_the_nearest_boundary(problem: MinNormProblem, rows: Tensor, start: Tensor) -> Tensor:
    """(A, *shape) the points nearest to the clean images on the boundaries that are linearised at ``start``."""
    clean = problem.clean_of(rows)
    logits, planes = boundaries(problem, start, rows, _CLASSES)
    tolerance = problem.decision_tolerance(logits)
    closest, far = torch.empty_like(start), torch.full_like(tolerance, torch.inf)
    first = True
    for value, gradient in planes:  # `enumerate` would hold a gradient beside the next one
        for clean_, start_, value_, gradient_, tolerance_, closest_, far_ in zip(
            *in_parts(clean, start, value, gradient, tolerance, closest, far), strict=True
        ):
            at_clean = _BEYOND * (value_ + (gradient_ * (clean_ - start_)).flatten(1).sum(1) - tolerance_)
            projection = onto_hyperplane(clean_, at_clean, gradient_, problem.norm, problem.bounds)
            moved = projection - clean_
            # A boundary on whose far side the clean image lies already, or that the pixel range keeps out of reach, tells nothing.
            useful = (at_clean < 0) & ((gradient_ * moved).flatten(1).sum(1) > -at_clean / _BEYOND)
            length = torch.where(useful, problem.length(moved), torch.inf)
            Nearest(closest_, far_).take((length < far_) | first, projection, length)
        first = False
        del gradient, gradient_
    return closest


def binary_search(problem: MinNormProblem, rows: Tensor, best: Nearest) -> Nearest:
    """Search the segment between the clean image and the example for the boundary."""
    clean, norm = problem.clean_of(rows), best.norm
    low, high = torch.zeros_like(norm), torch.ones_like(norm)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        x = between(clean, best.x, middle).clamp_(*problem.bounds)
        adversarial = problem.adversarial(problem.oracle.logits(x, rows), rows)
        low, high = torch.where(adversarial, low, middle), torch.where(adversarial, middle, high)
        norm = torch.where(adversarial, problem.distance_of(x, clean), norm)
        del x
    # The nearest point is that of the last share that was adversarial: it is made again, so that it need not be held meanwhile.
    x = between(clean, best.x, high).clamp_(*problem.bounds)
    return Nearest(torch.where(per_sample(high < 1, x), x, best.x, out=x), norm)


def between(start: Tensor, end: Tensor, share: float | Tensor) -> Tensor:
    """(A, *shape) start + share * (end - start), in the memory of one tensor."""
    x = end - start
    x *= share if isinstance(share, float) else per_sample(share, x)
    x += start
    return x


def sparsify(problem: MinNormProblem, rows: Tensor, best: Nearest) -> Nearest:
    """Search for the smallest number of changed pixels that is still adversarial; the largest changes are kept."""
    clean, best = problem.clean_of(rows), best.copy()
    delta = best.x - clean
    low, high = torch.zeros_like(best.norm), best.norm
    for _ in range(_HALVINGS):
        middle = ((low + high) / 2).ceil()
        parts = zip(*in_parts(clean, delta, middle), strict=True)
        x = torch.cat([clean_ + largest(delta_, middle_) for clean_, delta_, middle_ in parts])
        adversarial = problem.adversarial(problem.oracle.logits(x, rows), rows)
        low, high = torch.where(adversarial, low, middle), torch.where(adversarial, middle, high)
        best.take(adversarial, x, problem.distance_of(x, clean))
        del x
    return best


def keep_nearer(problem: MinNormProblem, rows: Tensor, best: Nearest, x: Tensor) -> None:
    """Write ``x`` into ``best`` wherever it is adversarial and nearer: one forward pass."""
    adversarial = problem.adversarial(problem.oracle.logits(x, rows), rows)
    length = problem.distance_of(x, problem.clean_of(rows))
    best.take(adversarial & (length < best.norm), x, length)
