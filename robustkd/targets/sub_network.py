"""One sub-network of a network that holds several, as a classifier of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from robustkd.contracts import Card, Target, TargetError
from robustkd.contracts.errors import suggestion
from robustkd.contracts.json_value import JsonObject
from robustkd.targets.cards import target_from_card
from robustkd.targets.image import ImageTarget

if TYPE_CHECKING:
    from robustkd.models.sub_networks import AdaptiveNetwork, SubNetworks


class SubNetworkCard(Card):
    """The card of a sub-network: that of the network which holds it, and its name there."""

    base: JsonObject
    name: str


class SubNetworkTarget(ImageTarget):
    """A sub-network by itself: one exit whatever the rule says, or one width.

    Args:
        base: the network that holds it; both share their weights.
        name: which one, such as ``exit-1`` or ``width-0.25``.

    Raises:
        TargetError: the network holds no other, or none of this name.
    """

    kind = "sub-network"

    def __init__(self, base: ImageTarget, name: str) -> None:
        from robustkd.models.sub_networks import SubNetwork  # late: it imports torch

        network = sub_networks(base)
        if name not in network.names:
            raise TargetError(f"the network holds no sub-network '{name}'", fix=suggestion(name, network.names))
        module = SubNetwork(network, network.names.index(name))
        super().__init__(module, num_classes=base.num_classes, input_shape=base.input_shape, bounds=base.bounds)
        self.base, self.name = base, name

    @override
    def card(self) -> JsonObject:
        return SubNetworkCard(target=self.kind, base=self.base.card(), name=self.name).to_json()

    @classmethod
    @override
    def from_card(cls, card: JsonObject) -> SubNetworkTarget:
        own = SubNetworkCard.read(card)
        base = target_from_card(own.base)
        assert isinstance(base, ImageTarget)
        return cls(base, own.name)


class _View(ImageTarget):
    """Two classes that say something about an adaptive network; it shares the weights, and is never stored."""

    @override
    def card(self) -> JsonObject:
        raise NotImplementedError("a view of a network is never stored")

    @classmethod
    @override
    def from_card(cls, card: JsonObject) -> _View:
        raise NotImplementedError("a view of a network is never stored")


class ComputationTarget(_View):
    """Whether an adaptive network spends more than a budget on an image: class 1, it does.

    An attack on it with label 0 is a slowdown attack: it succeeds where the network computes more than the budget, whatever it answers
    then. Any attack on classifiers can be one, and the margin is exact.

    Args:
        base: the adaptive network; both share their weights.
        budget: in multiply-adds.

    Raises:
        TargetError: the network spends the same on every image.
    """

    kind = "computation"

    def __init__(self, base: Target, budget: float) -> None:
        from robustkd.models.sub_networks import Computation  # late: it imports torch

        module = Computation(adaptive_network(base), budget)
        super().__init__(module, num_classes=2, input_shape=base.input_shape, bounds=base.bounds)


class UnsureExitsTarget(_View):
    """How near the exits before the last are to the uniform distribution, which no input makes a success: DeepSloth's loss.

    Args:
        base: a network with exits; both share their weights.

    Raises:
        TargetError: the network has none.
    """

    kind = "unsure-exits"
    never_adversarial = True

    def __init__(self, base: Target) -> None:
        from robustkd.models.sub_networks import UnsureExits  # late: it imports torch

        network = adaptive_network(base)
        if not network.has_exits:
            raise TargetError(
                f"the network of this {base.kind} has no exits", fix="use a model with exits, such as multi-exit-cnn"
            )
        super().__init__(UnsureExits(network), num_classes=2, input_shape=base.input_shape, bounds=base.bounds)


def sub_networks(target: Target) -> SubNetworks:
    """The network of a target that holds several.

    Raises:
        TargetError: it holds no other.
    """
    from robustkd.models.sub_networks import SubNetworks  # late: it imports torch

    if not isinstance(target.module, SubNetworks):
        raise TargetError(
            f"the network of this {target.kind} holds no sub-networks",
            fix="use a model with exits or widths, such as multi-exit-cnn",
        )
    return target.module


def adaptive_network(target: Target) -> AdaptiveNetwork:
    """The network of a target that decides image by image how much it computes.

    Raises:
        TargetError: it spends the same on every image.
    """
    from robustkd.models.sub_networks import AdaptiveNetwork  # late: it imports torch

    if not isinstance(target.module, AdaptiveNetwork):
        raise TargetError(
            f"the network of this {target.kind} spends the same on every image",
            fix="use an adaptive model, such as multi-exit-cnn",
        )
    return target.module
