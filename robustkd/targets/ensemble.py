"""Several classifiers that answer together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from typing_extensions import override

from robustkd.contracts import Capabilities, Card, UsageError
from robustkd.contracts.json_value import JsonObject
from robustkd.targets.cards import target_from_card
from robustkd.targets.image import ImageTarget

if TYPE_CHECKING:
    from torch import Tensor


def log_mean_probability(logits: Tensor) -> Tensor:
    """log( 1/M sum_m softmax(z_m) ), for (M, B, K) logits: (B, K) log-probabilities, exact however small they are.

    Its argmax is the ensemble's decision, its cross entropy the ensemble's, and its margin log p_j - log p_y.
    """
    return logits.log_softmax(2).logsumexp(0) - math.log(len(logits))


def together(members: Iterable[Capabilities]) -> Capabilities:
    """What an ensemble can be asked for: what all its members can."""
    return frozenset.intersection(*members) | {"members"}


class EnsembleCard(Card):
    """The card of an ensemble: those of its members."""

    members: tuple[JsonObject, ...]


class EnsembleTarget(ImageTarget):
    """Classifiers of the same images, whose probabilities are averaged.

    Its output are log-probabilities. Every loss on logits may be used on them; taken for logits under a mask of zeros instead of
    -inf, as in some public code for ensembles, they make a margin whose best wrong class is always 0, and that is no margin.

    Args:
        members: at least one; they share their weights with the ensemble.

    Raises:
        UsageError: there is none, or they do not map the same images to the same classes.
    """

    kind = "ensemble"
    output = "log-probabilities"
    members: tuple[ImageTarget, ...]

    def __init__(self, members: Sequence[ImageTarget]) -> None:
        if not members:
            raise UsageError("an ensemble without members", fix="name at least one")
        first = members[0]
        for member in members:
            if (member.num_classes, member.input_shape, member.bounds) != (first.num_classes, first.input_shape, first.bounds):
                raise UsageError(
                    f"the members of an ensemble differ: one maps {first.input_shape} in {first.bounds} to {first.num_classes} "
                    f"classes, another {member.input_shape} in {member.bounds} to {member.num_classes}",
                    fix="name members that are trained on the same data",
                )
        from robustkd.targets.modules import MeanProbability  # late: it imports torch

        super().__init__(
            MeanProbability([member.module for member in members], log_mean_probability),
            num_classes=first.num_classes,
            input_shape=first.input_shape,
            bounds=first.bounds,
        )
        self.members = tuple(members)
        self.capabilities = together(member.capabilities for member in members)

    @override
    def card(self) -> JsonObject:
        return EnsembleCard(target=self.kind, members=tuple(member.card() for member in self.members)).to_json()

    @classmethod
    @override
    def from_card(cls, card: JsonObject) -> EnsembleTarget:
        members = [target_from_card(item) for item in EnsembleCard.read(card).members]
        return cls([member for member in members if isinstance(member, ImageTarget)])
