"""The networks of targets that are made of others. Importing it imports torch, so whoever builds one imports it then."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from robustkd.lazy import nn, torch
from robustkd.scoring.probabilities import log_of_probabilities

if TYPE_CHECKING:
    from torch import Tensor

Key: TypeAlias = str | int
"""Where a tensor is in what holds it: an attribute or a key, or its position."""


class WithoutGradients(nn.Module):
    """A network whose answers cannot be differentiated. A target that has one among its parts lacks the capability ``gradients``."""


class MeanProbability(nn.Module):
    """The members' mean probability, as its logarithm."""

    def __init__(self, members: Sequence[nn.Module], mean: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self._mean = mean

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K) log-probabilities."""
        return self._mean(torch.stack([member(images) for member in self.members]))


class _Behind(nn.Module):
    """Something that is done with the output of a network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


class LogOfProbabilities(_Behind):
    """log p(x) of a network that ends with a softmax."""

    def forward(self, images: Tensor) -> Tensor:
        """(B, *shape) -> (B, K) log-probabilities."""
        return log_of_probabilities(self.network(images))


def taken(returned: Any, key: Key | None) -> Any:
    """The tensor at ``key``; ``returned`` itself where that is a tensor, as of a network that answers otherwise in training."""
    if isinstance(returned, torch.Tensor) or key is None:
        return returned
    return returned[key] if isinstance(key, int) or isinstance(returned, Mapping) else getattr(returned, key)


class ClassesAlone(WithoutGradients):
    """A network that answers with classes alone. A target that has one among its parts lacks the capability ``logits``.

    Args:
        network: (B, *shape) -> (B,) or (B, 1) whole numbers.
        classes: K.
    """

    def __init__(self, network: nn.Module, classes: int) -> None:
        super().__init__()
        self.network, self.classes = network, classes

    def forward(self, images: Tensor) -> Tensor:
        """(B, *shape) -> (B, K): 1 for the class that was answered, -1 for the others, which are no probabilities."""
        answers = self.network(images).reshape(len(images)).long()
        return 2.0 * nn.functional.one_hot(answers, self.classes) - 1.0


class Taken(_Behind):
    """The tensor at ``key`` of the tuple, mapping or object that a network returns."""

    def __init__(self, network: nn.Module, key: Key) -> None:
        super().__init__(network)
        self.key = key

    def forward(self, images: Tensor) -> Tensor:
        """(B, *shape) -> what the network returns there."""
        found: Tensor = taken(self.network(images), self.key)
        return found


class OneLabel(_Behind):
    """The output for one of several labels."""

    def __init__(self, network: nn.Module, label: int) -> None:
        super().__init__(network)
        self.label = label

    def forward(self, images: Tensor) -> Tensor:
        """(B, *shape) -> (B, 1)."""
        found: Tensor = self.network(images)
        return found[:, self.label : self.label + 1]


class TwoClasses(_Behind):
    """Two classes from one number: the logits 0 and z, or the probabilities 1 - p and p."""

    def __init__(self, network: nn.Module, probabilities: bool) -> None:
        super().__init__(network)
        self.probabilities = probabilities

    def forward(self, images: Tensor) -> Tensor:
        """(B, *shape) -> (B, 2)."""
        second: Tensor = self.network(images).reshape(len(images), 1)
        return torch.cat([1 - second if self.probabilities else torch.zeros_like(second), second], dim=1)


class SetsOfLabels(_Behind):
    """A class for each set of L labels: class c holds label l where bit l of c is 1, and its logit is the sum of z_l over them.

    The margin between a set and the best other one is the smallest |z_l|, negative where one of the set's labels is not predicted, and the
    cross entropy is the sum of the labels' binary cross entropies.
    """

    sets: Tensor

    def __init__(self, network: nn.Module, labels: int, probabilities: bool) -> None:
        super().__init__(network)
        self.probabilities = probabilities
        sets = (torch.arange(2**labels).unsqueeze(0) >> torch.arange(labels).unsqueeze(1)) & 1
        self.register_buffer("sets", sets, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, *shape) -> (B, 2^L)."""
        z: Tensor = self.network(images)
        if self.probabilities:
            z = log_of_probabilities(z) - log_of_probabilities(1 - z)
        return z @ self.sets.to(z)


class Chosen(_Behind):
    """Some outputs of a network, in an order of their own."""

    order: Tensor

    def __init__(self, network: nn.Module, order: Sequence[int]) -> None:
        super().__init__(network)
        self.register_buffer("order", torch.tensor(order), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, *shape) -> (B, len(order))."""
        found: Tensor = self.network(images)
        return found.index_select(1, self.order.to(found.device))


class Pipeline(nn.Module):
    """x -> model(t_n(.. t_1(x)))."""

    def __init__(self, transforms: Sequence[nn.Module], model: nn.Module) -> None:
        super().__init__()
        self.transforms = nn.Sequential(*transforms)
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> what the model returns."""
        return self.model(self.transforms(images))


class Smoothed(nn.Module):
    """The share of noisy copies of an image that a network takes for each class, as its logarithm.

    Its gradient is that of the mean probability over the copies; a share itself has none.

    Args:
        base: (B, *shape) -> (B, K) logits.
        sigma: standard deviation of the noise, in pixel units.
        draws: noisy copies of each image, drawn anew at each pass.
    """

    def __init__(self, base: nn.Module, sigma: float, draws: int) -> None:
        super().__init__()
        self.base, self.sigma, self.draws = base, sigma, draws

    def forward(self, images: Tensor) -> Tensor:
        """(B, *shape) -> (B, K) logarithms of shares."""
        copies = images.repeat_interleave(self.draws, 0)
        logits = self.base(copies + self.sigma * torch.randn_like(copies)).unflatten(0, (len(images), self.draws))
        mean = logits.softmax(2).mean(1)
        votes = nn.functional.one_hot(logits.argmax(2), logits.shape[2]).to(mean.dtype).mean(1)
        return (mean + (votes - mean).detach()).clamp_min(1e-6).log()


class Watched(nn.Module):
    """A classifier and a detector's scorer; the formula is that of ``robustkd.targets.detecting``.

    Args:
        classifier: (B, *shape) -> (B, K).
        scorer: see ``Detector``.
    """

    threshold: Tensor
    spread: Tensor

    def __init__(self, classifier: nn.Module, scorer: nn.Module) -> None:
        super().__init__()
        self.classifier, self.scorer = classifier, scorer
        self.register_buffer("threshold", torch.tensor(0.0))
        self.register_buffer("spread", torch.tensor(1.0))

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, *shape) -> (B, K + 1)."""
        logits = self.classifier(inputs)
        beyond = (self.scorer(inputs, logits) - self.threshold.to(logits)) / self.spread.to(logits)
        rejected = logits.amax(1) + beyond.sign() * beyond.abs().log1p()
        return torch.cat([logits, rejected.unsqueeze(1)], 1)
