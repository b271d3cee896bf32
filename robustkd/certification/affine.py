"""Affine layers: linear bounds of them are exact, since they pass a linear function on as another one.

    a f(x) = (J^T a) x + a f(0)             J^T a is the backward pass of the layer, f(0) its output for zeros

For intervals each kind of layer has its own rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from typing_extensions import override

from robustkd.certification.operation import Call, Interval, Operation


class Affine(Operation):
    """A layer that is affine in all of its inputs together."""

    @override
    def lower(self, call: Call, given: Sequence[Interval], rows: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        at_zero, pull_back, *_ = torch.func.vjp(call, *(torch.zeros_like(one.low) for one in given))
        return torch.vmap(pull_back)(rows), (rows * at_zero).flatten(2).sum(2)


class Monotone(Affine):
    """No coefficient is negative: means, sums of branches, changes of shape."""

    def __init__(self, *, mixes: bool = False) -> None:
        self.mixes = mixes

    @override
    def interval(self, call: Call, given: Sequence[Interval]) -> Interval:
        return Interval(call(*(one.low for one in given)), call(*(one.high for one in given)))


class Scaling(Affine):
    """Each output is one input times a constant of either sign, plus a constant."""

    @override
    def interval(self, call: Call, given: Sequence[Interval]) -> Interval:
        (one,) = given
        first, second = call(one.low), call(one.high)
        return Interval(first.minimum(second), first.maximum(second))


class Difference(Affine):
    """``x - y`` of two branches."""

    @override
    def interval(self, call: Call, given: Sequence[Interval]) -> Interval:
        one, other = given
        return Interval(call(one.low, other.high), call(one.high, other.low))


class Weighted(Affine):
    """A linear or convolutional layer.

    Args:
        without_sign: the layer with the absolute values of its weights, without its bias.
    """

    mixes = True

    def __init__(self, without_sign: Call) -> None:
        self._without_sign = without_sign

    @override
    def interval(self, call: Call, given: Sequence[Interval]) -> Interval:
        (one,) = given
        centre, radius = call((one.low + one.high) / 2), self._without_sign((one.high - one.low) / 2)
        return Interval(centre - radius, centre + radius)


class Function(Affine):
    """A layer that is computed by another function than its own, such as one that behaves otherwise in training.

    Args:
        kind: how intervals are carried through it.
        function: of one tensor.
    """

    def __init__(self, kind: Affine, function: Callable[[Tensor], Tensor]) -> None:
        self._kind, self._function = kind, function

    @override
    def interval(self, call: Call, given: Sequence[Interval]) -> Interval:
        return self._kind.interval(self._function, given)

    @override
    def lower(self, call: Call, given: Sequence[Interval], rows: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        return self._kind.lower(self._function, given, rows)


def batch_norm(layer: nn.BatchNorm1d | nn.BatchNorm2d) -> Function:
    """A batch normalisation by its running statistics, also while the network is in training."""

    def normalised(x: Tensor) -> Tensor:
        return nn.functional.batch_norm(
            x, layer.running_mean, layer.running_var, layer.weight, layer.bias, False, 0.0, layer.eps
        )

    return Function(Scaling(), normalised)


def identity() -> Function:
    """What a dropout is in use."""
    return Function(Monotone(), lambda x: x)


def linear(layer: nn.Linear) -> Weighted:
    """A fully connected layer."""
    return Weighted(lambda radius: nn.functional.linear(radius, layer.weight.abs()))


def convolution(layer: nn.Conv1d | nn.Conv2d) -> Weighted:
    """A convolution."""
    return Weighted(lambda radius: layer._conv_forward(radius, layer.weight.abs(), None))
