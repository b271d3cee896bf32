"""Networks that hold several: one for each exit or each width, which share their weights, and a rule that says which of them answers."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from robustkd.lazy import nn, torch
from robustkd.models.image import ImageNetwork

if TYPE_CHECKING:
    from torch import Tensor


class SubNetworks(ImageNetwork):
    """A network that holds several, which share their weights.

    Attributes:
        names: of the sub-networks, from the cheapest to the most expensive.
        multiply_adds: what each of them takes for one image by itself.
    """

    names: tuple[str, ...]
    multiply_adds: tuple[int, ...]

    def answer(self, number: int, images: Tensor) -> Tensor:
        """(B, K) logits of one sub-network for (B, C, H, W) in [0, 1]."""
        return self._answer(number, self.normalise(images))

    def answers(self, images: Tensor) -> Tensor:
        """(S, B, K) logits of all sub-networks for (B, C, H, W) in [0, 1]."""
        x = self.normalise(images)
        return torch.stack([self._answer(number, x) for number in range(len(self.names))])

    @abstractmethod
    def _answer(self, number: int, x: Tensor) -> Tensor:
        """(B, K) logits of one sub-network for normalised images."""


class AdaptiveNetwork(SubNetworks):
    """A network with a rule that decides image by image how much is computed. Its cost is counted, not saved: a batch is computed whole.

    Attributes:
        has_exits: whether the sub-networks are exits of one pass, of which the rule takes the first that is sure enough.
    """

    has_exits: ClassVar[bool] = False

    @property
    @abstractmethod
    def budgets(self) -> tuple[int, ...]:
        """The multiply-adds that the rule can spend on an image, rising."""

    @abstractmethod
    def spent(self, images: Tensor) -> Tensor:
        """(B,) int64, the multiply-adds that the rule spends on each of (B, C, H, W) in [0, 1]."""

    @abstractmethod
    def beyond(self, images: Tensor, budget: float) -> Tensor:
        """(B,) a number that is above 0 exactly where the rule spends more than ``budget`` multiply-adds, and has a useful gradient."""


class SubNetwork(nn.Module):
    """One sub-network, by itself.

    Args:
        network: shares its weights with this.
        number: which one.
    """

    def __init__(self, network: SubNetworks, number: int) -> None:
        super().__init__()
        self.network, self.number = network, number

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, K) logits."""
        return self.network.answer(self.number, images)


class Computation(nn.Module):
    """Whether a network spends more than a budget on an image, as two classes: 0, it does not, and 1, it does.

    Args:
        network: shares its weights with this.
        budget: in multiply-adds.
    """

    def __init__(self, network: AdaptiveNetwork, budget: float) -> None:
        super().__init__()
        self.network, self.budget = network, budget

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, 2) logits: 0 and ``beyond``."""
        beyond = self.network.beyond(images, self.budget)
        return torch.stack([torch.zeros_like(beyond), beyond], 1)


class UnsureExits(nn.Module):
    """How far the exits before the last are from the uniform distribution, as two classes: what DeepSloth climbs.

    Args:
        network: one that ``has_exits``; it shares its weights with this.
    """

    def __init__(self, network: AdaptiveNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, 2) logits: 0, and the negative sum of the exits' cross entropies with the uniform distribution."""
        unsure = self.network.answers(images)[:-1].log_softmax(2).mean(2).sum(0)
        return torch.stack([torch.zeros_like(unsure), unsure], 1)


def log_odds(logits: Tensor) -> Tensor:
    """(..) log(p / (1 - p)) of the largest probability p of (.., K) logits. It says the same as p, and does not saturate."""
    top, place = logits.max(-1, keepdim=True)
    rest = logits.scatter(-1, place, -torch.inf).logsumexp(-1)
    return top.squeeze(-1) - rest
