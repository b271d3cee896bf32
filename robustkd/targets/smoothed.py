"""A classifier that answers with what a network says of most noisy copies of an image."""

from __future__ import annotations

from typing_extensions import override

from robustkd.contracts import Card, TargetError
from robustkd.contracts.json_value import JsonObject
from robustkd.targets.cards import target_from_card
from robustkd.targets.image import ImageTarget


class SmoothedCard(Card):
    """The card of a smoothed classifier: its network's, and the noise."""

    base: JsonObject
    sigma: float
    draws: int


class SmoothedTarget(ImageTarget):
    """The vote of a network over noisy copies; it draws random numbers.

    Args:
        base: the network; it shares its weights with this target.
        sigma: standard deviation of the noise, in pixel units.
        draws: noisy copies of each image.

    Raises:
        TargetError: the network does not take pixels in [0, 1].
    """

    kind = "smoothed"

    def __init__(self, base: ImageTarget, *, sigma: float, draws: int) -> None:
        if base.bounds != (0.0, 1.0):
            raise TargetError(f"noise is added to pixels in [0, 1], the model takes them in {base.bounds}")
        from robustkd.targets.modules import Smoothed  # late: it imports torch

        module = Smoothed(base.module, sigma, draws)
        super().__init__(module, num_classes=base.num_classes, input_shape=base.input_shape)
        self.base, self.sigma, self.draws = base, sigma, draws
        self.capabilities = base.capabilities - {"members"}

    @override
    def card(self) -> JsonObject:
        return SmoothedCard(target=self.kind, base=self.base.card(), sigma=self.sigma, draws=self.draws).to_json()

    @classmethod
    @override
    def from_card(cls, card: JsonObject) -> SmoothedTarget:
        own = SmoothedCard.read(card)
        base = target_from_card(own.base)
        assert isinstance(base, ImageTarget)
        return cls(base, sigma=own.sigma, draws=own.draws)
