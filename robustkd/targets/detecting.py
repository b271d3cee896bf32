"""A classifier with a detector, which rejects inputs in the place of answering them.

    outputs(x) = ( z(x),  max_k z_k(x) + g( (score(x) - threshold) / spread ) ),     g(u) = sign(u) log(1 + |u|)

The last output says that x is rejected: it is the largest exactly where the score is above the threshold. So classifier and detector are
one target with one graph, and every attack on it is an attack on both. The logarithm keeps what a score of a thousand spreads says within
the reach of a softmax, without changing a decision.

Source: Carlini & Wagner: Adversarial examples are not easily detected (AISec 2017), arXiv:1705.07263, section 2.3, for the class of the
detector. Theirs is (D(x) + 1) max_k z_k, which says the contrary where all logits are negative; the sum, its spread and the logarithm are
ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from robustkd import plugins
from robustkd.contracts import BaseTarget, Card, Detector, TargetError
from robustkd.contracts.json_value import JsonObject
from robustkd.contracts.target import of_kind
from robustkd.lazy import torch
from robustkd.plugins.nested import PluginSpec
from robustkd.scoring.detection import calibrated_threshold
from robustkd.targets.cards import target_from_card
from robustkd.targets.image import ImageTarget

if TYPE_CHECKING:
    from torch import Tensor


class DetectorSpec(PluginSpec):
    """A detector by its kind, with its parameters."""

    group: ClassVar[plugins.Group] = "detectors"

    @override
    def make(self) -> Detector[Any]:
        detector: Detector[Any] = super().make()
        return detector


class DetectingCard(Card):
    """The card of a classifier with a detector: the classifier's, how the detector is built, and those of the targets that it asks."""

    base: JsonObject
    detector: DetectorSpec
    others: dict[str, JsonObject]


class DetectingTarget(ImageTarget):
    """A classifier with a detector. It has an output more than the classifier, the last, which says that an input is rejected.

    Args:
        base: the classifier; it shares its weights with this target.
        detector: how its scorer is built.
        others: the targets that the detector's parameters refer to, by name.
    """

    kind = "with-detector"
    rejects = True

    def __init__(self, base: ImageTarget, detector: DetectorSpec, others: Mapping[str, BaseTarget]) -> None:
        from robustkd.targets.modules import Watched  # late: it imports torch

        self.scorer = detector.make().build(base, others)
        module = Watched(base.module, self.scorer)
        super().__init__(module, num_classes=base.num_classes + 1, input_shape=base.input_shape, bounds=base.bounds)
        self.base, self.detector, self.others = base, detector, dict(others)
        self.capabilities = self.capabilities & base.capabilities - {"members"}

    def scores(self, inputs: Tensor) -> Tensor:
        """(B, *shape) -> (B,) the detector's scores, without a graph.

        Raises:
            TargetError: the detector does not give one score for each input.
        """
        with torch.no_grad():
            scores: Tensor = self.scorer(inputs, self.base(inputs))
        if scores.shape != inputs.shape[:1]:
            raise TargetError(
                f"detector '{self.detector.kind}' gives {len(inputs)} inputs scores of shape {tuple(scores.shape)}",
                fix="return one score an input, (B,)",
            )
        return scores

    def calibrate(self, scores: Tensor, false_alarms: float) -> None:
        """Set the threshold by the (N,) scores of clean inputs, of which at most the share ``false_alarms`` may be rejected; the spread is
        the distance between their quartiles.
        """
        known = scores.detach().cpu().double()
        self.module.get_buffer("threshold").fill_(calibrated_threshold(known.numpy(), false_alarms))
        low, high = torch.quantile(known, torch.tensor([0.25, 0.75], dtype=known.dtype))
        self.module.get_buffer("spread").fill_(float(high - low) or 1.0)

    @override
    def card(self) -> JsonObject:
        others = {name: target.card() for name, target in self.others.items()}
        return DetectingCard(target=self.kind, base=self.base.card(), detector=self.detector, others=others).to_json()

    @classmethod
    @override
    def from_card(cls, card: JsonObject) -> DetectingTarget:
        own = DetectingCard.read(card)
        base = of_kind(target_from_card(own.base), "base", ImageTarget)
        return cls(base, own.detector, {name: target_from_card(other) for name, other in own.others.items()})
