"""Decision boundaries as hyperplanes: how FAB and DeepFool linearise a network, and the projection onto the nearest of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from robustkd.attacks.image.engine.minimum_norm.nearest import MinNormProblem, Query, in_parts
from robustkd.attacks.image.engine.oracle import Oracle, finite, gradient_of
from robustkd.contracts.target import Bounds
from robustkd.contracts.threat import Norm
from robustkd.lazy import torch
from robustkd.scoring.distances import distance, per_sample
from robustkd.scoring.pixels import over_channels

if TYPE_CHECKING:
    from torch import Tensor

DUAL: dict[Norm, Norm] = {"linf": "l1", "l2": "l2", "l1": "linf"}
"""|<g, d>| <= ||g||_dual ||d||_norm, so a hyperplane of value v and gradient g is at distance |v| / ||g||_dual."""


def linearised(
    oracle: Oracle, x: Tensor, rows: Tensor, objectives: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Iterator[tuple[Tensor, Tensor]]]:
    """Logits at ``x``, and the (A,) values and (A, *shape) gradients of C objectives: one forward and C backward passes.

    The gradients are taken one after the other as they are asked for, so that one of them is in memory at a time.
    """
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = oracle.outputs_at(x, rows)
        values = objectives(finite(logits, x), rows)
        totals = values.sum(0).unbind()
    oracle.passes.spend(rows, forwards=1)

    def planes() -> Iterator[tuple[Tensor, Tensor]]:
        for number, total in enumerate(totals):
            oracle.passes.spend(rows, backwards=1)
            # In no variable of this function: it would be held beside the next one.
            yield values[:, number].detach(), gradient_of(total, x, again=number + 1 < len(totals))

    return logits.detach(), planes()


def boundaries(
    problem: MinNormProblem, x: Tensor, rows: Tensor, classes: int
) -> tuple[Tensor, Iterator[tuple[Tensor, Tensor]]]:
    """The boundaries around a point: of each other class with the label's, or, towards a goal, of the goal with the class
    that is highest among the others. Values are positive on the wrong side.

    Args:
        problem: names labels or goals.
        x: (A, *shape) the points.
        rows: (A,) which samples of the batch.
        classes: at most so many other classes, those with the highest logits at the point; a backward pass each.

    Returns:
        the logits, and the (A,) values and (A, *shape) gradients of one boundary after the other.
    """
    oracle = problem.oracle
    if oracle.goals is not None:
        logits, value, gradient = problem.margin_and_grad(x, rows)
        return logits, iter([(value, gradient)])

    def differences(logits: Tensor, rows: Tensor) -> Tensor:
        own = oracle.labels[rows].unsqueeze(1)
        others = logits.scatter(1, own, -torch.inf).topk(min(classes, logits.shape[1] - 1), 1).values
        return others - logits.gather(1, own)

    return linearised(oracle, x, rows, differences)


def nearest_boundary(problem: MinNormProblem, norm: Norm, classes: int, tolerances: int) -> Query:
    """The value and the gradient of that boundary around a point which is nearest in ``norm``, when linearised.

    Args:
        problem: names labels or goals.
        norm: linf, l2 or l1.
        classes: see ``boundaries``.
        tolerances: how far beyond the boundary is aimed, in multiples of the value below which a decision may be rounding.
    """

    def query(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, planes = boundaries(problem, x, rows, classes)
        beyond = tolerances * problem.decision_tolerance(logits)
        value, gradient = next(planes)
        value = value - beyond
        nearest = value.abs() / distance(gradient, DUAL[norm]).clamp_min(1e-30)
        for other, slope in planes:
            away = (other - beyond).abs() / distance(slope, DUAL[norm]).clamp_min(1e-30)
            closer = away < nearest
            value, nearest = torch.where(closer, other - beyond, value), torch.where(closer, away, nearest)
            gradient = torch.where(per_sample(closer, slope), slope, gradient)
            del slope  # which would be held beside the next one
        return logits, value, gradient

    return query


def boundary_with(problem: MinNormProblem, other: Tensor, tolerances: int) -> Query:
    """The boundary of the label with one other class of each sample.

    Args:
        problem: names the labels.
        other: (B,) classes.
        tolerances: see ``nearest_boundary``.
    """

    def difference(logits: Tensor, rows: Tensor) -> Tensor:
        pair = torch.stack([other[rows], problem.oracle.labels[rows]], 1)
        wrong, own = logits.gather(1, pair).unbind(1)
        return wrong - own

    def query(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, value, gradient = problem.oracle.value_and_grad(x, rows, difference)
        return logits, value - tolerances * problem.decision_tolerance(logits), gradient

    return query


def nearest_point(value: Tensor, gradient: Tensor, norm: Norm) -> Tensor:
    """The shortest step, in ``norm``, from a point of that value onto the hyperplane, whatever the pixel range.

    Args:
        value: (A,) of the linear function at the point.
        gradient: (A, *shape) of it.
        norm: linf, l2 or l1.
    """
    length = -value / distance(gradient, DUAL[norm]).clamp_min(1e-30)
    if norm == "linf":
        direction = gradient.sign()
    elif norm == "l2":
        direction = gradient / per_sample(distance(gradient, "l2").clamp_min(1e-30), gradient)
    else:
        steepest = gradient.flatten(1).abs().argmax(1, keepdim=True)
        direction = torch.zeros_like(gradient.flatten(1)).scatter(1, steepest, 1.0).view_as(gradient) * gradient.sign()
    return per_sample(length, gradient) * direction


def onto_hyperplane(x: Tensor, value: Tensor, gradient: Tensor, norm: Norm, bounds: Bounds) -> Tensor:
    """The point of the hyperplane {z : value + <gradient, z - x> = 0} nearest to x in ``norm`` inside the pixel range; where
    the range does not reach the hyperplane, its corner on that side.

    Every pixel moves along (or against) its gradient until it meets the range: all at one speed for linf, at a speed of |g_i|
    for l2. For l1 the pixels move one after the other, the one of the largest |g_i| first; for l0 the one first that gains
    most on its way to the range.

    Args:
        x: (A, *shape) points inside ``bounds``.
        value: (A,) of the linear function at ``x``.
        gradient: (A, *shape) of it.
        norm: linf, l2, l1 or l0.
        bounds: the pixel range.

    Source: Croce & Hein 2020 (arXiv:1907.02044), section 2.2 and supplement A; for l2 and linf these are the quadratic and
    linear programs that Hein & Andriushchenko 2017 (arXiv:1705.08475) solve by sorting.
    """
    parts = zip(*in_parts(x, value, gradient), strict=True)
    return torch.cat([_onto_hyperplane(x_, value_, gradient_, norm, bounds) for x_, value_, gradient_ in parts])


def _onto_hyperplane(x: Tensor, value: Tensor, gradient: Tensor, norm: Norm, bounds: Bounds) -> Tensor:
    low, high = (torch.as_tensor(bound).to(x).expand_as(x).flatten(1) for bound in bounds)
    flat = x.flatten(1)
    uphill = -(gradient.flatten(1) * value.sign().unsqueeze(1))  # along which the value comes nearer to 0
    steep, needed = uphill.abs(), value.abs().unsqueeze(1)
    room = torch.where(uphill > 0, high - flat, flat - low)
    if norm in ("l1", "l0"):
        merit = steep if norm == "l1" else over_channels((steep * room).view_as(x)).expand_as(x).flatten(1)
        order = merit.argsort(dim=1, descending=True, stable=True)
        steep_then, room_then = steep.gather(1, order), room.gather(1, order)
        gained = (steep_then * room_then).cumsum(1)
        missing = needed - (gained - steep_then * room_then)
        moved = (missing.clamp_min(0) / steep_then.clamp_min(1e-30)).minimum(room_then)
        size = torch.zeros_like(moved).scatter(1, order, moved)
    else:
        rate, speed = (steep, torch.ones_like(steep)) if norm == "linf" else (steep.square(), steep)  # gain and way by time
        bend = torch.where(steep > 0, room / speed.clamp_min(1e-30), 0)  # a flat pixel gains nothing: it stays
        size = speed * bend.minimum(_time_to_gain(needed, rate, bend))
    return (flat + uphill.sign() * size).view_as(x).clamp(*bounds)


def _time_to_gain(needed: Tensor, rate: Tensor, bend: Tensor) -> Tensor:
    """(A, 1) the time t at which sum_i rate_i * min(t, bend_i) reaches ``needed`` (A, 1); the last bend where it never does.

    The sum is concave and piecewise linear in t, so Newton's steps from t = 0 never overshoot, and end exactly: each one
    passes a bend, or is the last. A handful does, where sorting the bends would cost several times as much.
    """
    time = torch.zeros_like(needed)
    for _ in range(rate.shape[1]):
        speed = (rate * (bend > time)).sum(1, keepdim=True)
        missing = (needed - (rate * bend.minimum(time)).sum(1, keepdim=True)).clamp_min(0)
        further = torch.where(speed > 0, time + missing / speed.clamp_min(1e-30), bend.amax(1, keepdim=True))
        going = further > time * (1 + 16 * torch.finfo(time.dtype).eps)
        if not bool(going.any()):
            break
        time = torch.where(going, further, time)  # a sample that has arrived stays, however long others take
    return time
