"""A model behind input transforms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from typing_extensions import override

from robustkd import plugins
from robustkd.contracts import Card, TargetError, Transform, UsageError
from robustkd.contracts.json_value import JsonObject
from robustkd.lazy import nn
from robustkd.plugins.nested import PluginSpec
from robustkd.targets.cards import target_from_card
from robustkd.targets.image import ImageTarget


class TransformSpec(PluginSpec):
    """A transform by its kind, with its parameters."""

    group: ClassVar[plugins.Group] = "transforms"

    def make(self) -> Transform:
        """Make the transform from its kind and parameters."""
        transform: Transform = super().make()
        return transform


class PipelineCard(Card):
    """The card of a pipeline: its stages in order, and the card of the classifier behind them."""

    transforms: tuple[TransformSpec, ...]
    base: JsonObject


class PipelineTarget(ImageTarget):
    """Input transforms, then a classifier.

    Args:
        base: the classifier; it shares its weights with the pipeline.
        transforms: in the order in which they are applied; each a transform plug-in, or a module of one's own (such a target
            cannot be saved). A stage without a useful gradient may declare a backward surrogate (``targets.surrogate``).

    Raises:
        UsageError: the classifier does not take pixels in [0, 1].
    """

    kind = "pipeline"

    def __init__(self, base: ImageTarget, transforms: Sequence[TransformSpec | nn.Module]) -> None:
        if base.bounds != (0.0, 1.0):
            raise UsageError(f"transforms work on pixels in [0, 1], the model's are in {base.bounds}")
        from robustkd.targets.modules import Pipeline  # late: it imports torch

        stages = [item if isinstance(item, nn.Module) else item.make().build(base.input_shape) for item in transforms]
        module = Pipeline(stages, base.module)
        super().__init__(module, num_classes=base.num_classes, input_shape=base.input_shape)
        self.base = base
        self.transforms = tuple(transforms)
        self.output = base.output
        self.capabilities = base.capabilities - {"members"}

    @override
    def card(self) -> JsonObject:
        specs = tuple(item for item in self.transforms if isinstance(item, TransformSpec))
        if len(specs) < len(self.transforms):
            raise TargetError(
                "this pipeline cannot be saved: robustkd does not know how to build its stages again",
                fix="use transform plug-ins (robustkd list transforms)",
            )
        return PipelineCard(target=self.kind, transforms=specs, base=self.base.card()).to_json()

    @classmethod
    @override
    def from_card(cls, card: JsonObject) -> PipelineTarget:
        own = PipelineCard.read(card)
        base = target_from_card(own.base)
        assert isinstance(base, ImageTarget)
        return cls(base, own.transforms)
