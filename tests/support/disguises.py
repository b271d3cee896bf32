"""A linear classifier of digits whose worst case is known in closed form, and ways to hide its gradient that change no decision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn


@dataclass(frozen=True)
class Linear:
    """The nearest of ten classes' means, as a linear network.

    Attributes:
        x, y: (N, 1, 8, 8) and (N,), samples of each class in turn.
    """

    weight: Tensor
    bias: Tensor
    x: Tensor
    y: Tensor

    @classmethod
    def of_digits(cls, n: int) -> Linear:
        images, labels = load_digits(return_X_y=True)
        x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
        means = torch.stack([x[y == k].mean(0) for k in range(10)])
        return cls(8 * means, -4 * means.square().sum(1), x[:n].view(-1, 1, 8, 8), y[:n])

    def __call__(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.bias

    def robust_accuracy(self, eps: float) -> float:
        """The share of samples that no point within ``eps`` in linf and the pixel range breaks: a maximum over a box for each class."""
        x = self.x.flatten(1)
        low, high = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
        stands = torch.ones(len(x), dtype=torch.bool)
        for k in range(10):
            towards = self.weight[k] - self.weight[self.y]
            best = torch.where(towards > 0, high, low)
            ahead = (towards * best).sum(1) + self.bias[k] - self.bias[self.y]
            stands &= (ahead < 0) | (self.y == k)
        return float(stands.float().mean())


class NoiseBackwards(torch.autograd.Function):
    """The identity, with a gradient of noise."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        return torch.randn_like(upstream)


class _Zero(NoiseBackwards):
    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        return torch.zeros_like(upstream)


class _Opaque(torch.autograd.Function):
    """The whole classifier in one function: nothing in it can be differentiated, and what it says of its gradient is noise."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, classifier: Linear) -> Tensor:
        ctx.shape = x.shape
        return classifier(x)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return torch.randn(ctx.shape), None


def noise(classifier: Linear, x: Tensor) -> Tensor:
    return classifier(NoiseBackwards.apply(x))


def zero(classifier: Linear, x: Tensor) -> Tensor:
    return classifier(_Zero.apply(x))


def opaque(classifier: Linear, x: Tensor) -> Tensor:
    logits: Tensor = _Opaque.apply(x, classifier)
    return logits


def detached(classifier: Linear, x: Tensor) -> Tensor:
    """The gradient is that of another function, of a blurred image turned upside down."""
    false = classifier(nn.functional.avg_pool2d(x, 3, 1, 1).flip(2))
    return false + (classifier(x) - false).detach()


def without_a_graph(classifier: Linear, x: Tensor) -> Tensor:
    with torch.no_grad():
        return classifier(x)


def hooked(classifier: Linear, x: Tensor) -> Tensor:
    """A hook turns the gradient round."""
    x = x * 1.0
    if x.requires_grad:
        x.register_hook(torch.neg)
    return classifier(x)


def through_integers(classifier: Linear, x: Tensor) -> Tensor:
    """Pixels in steps of a millionth."""
    return classifier((x * 1e6).round().to(torch.int64).float() / 1e6)


def binary(classifier: Linear, x: Tensor) -> Tensor:
    """Each logit is written as its steps of a thousandth and what remains."""
    logits = classifier(x)
    return torch.where(logits > 0, torch.floor(logits * 1e3) / 1e3, torch.ceil(logits * 1e3) / 1e3)


def saturated(classifier: Linear, x: Tensor) -> Tensor:
    """Sigmoids, which are flat for all classes but the first."""
    logits = classifier(x)
    return (3 * (logits - logits.amax(1, keepdim=True))).sigmoid()


def exponentials(classifier: Linear, x: Tensor) -> Tensor:
    """Radial basis functions around the means, far from all of them."""
    squared_distances = x.flatten(1).square().sum(1, keepdim=True) - classifier(x) / 4
    return (-8 * squared_distances).exp()


def clipped(classifier: Linear, x: Tensor) -> Tensor:
    """Logarithms of very sure probabilities that were clipped, so that all wrong classes have the same."""
    logits = classifier(x)
    tie = 1e-4 * logits.detach() / logits.detach().abs().amax(1, keepdim=True)
    return (100 * logits).softmax(1).clamp(1e-3, 1 - 1e-3).log() + tie


def looked_up(classifier: Linear, x: Tensor) -> Tensor:
    """The row of a table for the likeliest class, with next to nothing of the gradient's scale."""
    likeliest = classifier(x).topk(2, dim=1).indices[:, 0]
    return torch.eye(10)[likeliest] + 0 * x.flatten(1)[:, :10]


DISGUISES: dict[str, Callable[[Linear, Tensor], Tensor]] = {
    disguise.__name__: disguise
    for disguise in (
        noise,
        zero,
        detached,
        without_a_graph,
        hooked,
        through_integers,
        binary,
        saturated,
        exponentials,
        clipped,
        looked_up,
    )
}
"""Those that ``bpda`` sees through by itself; ``opaque`` is the one that it does not."""


class Network(nn.Module):
    """A classifier behind a disguise."""

    def __init__(self, classifier: Linear, disguise: Callable[[Linear, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.classifier, self.disguise = classifier, disguise

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(x) if self.disguise is None else self.disguise(self.classifier, x)
