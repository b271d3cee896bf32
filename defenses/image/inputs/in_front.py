"""What stands in front of a model of the campaign: a stage that its inputs go through, the model itself left as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from typing_extensions import override

from robustkd.contracts import Capabilities, Defense, FitContext, Target, TargetRef
from robustkd.defenses.training import Recipe, TrainParams, train
from robustkd.defenses.training.networks import seeded_init
from robustkd.defenses.training.params import BatchSizeParam, OptimiserParam, WeightDecayParam
from robustkd.targets import ImageTarget, PipelineTarget, TransformSpec, frozen


class InFront(Defense):
    """A defense whose parameter ``base`` names the model behind it."""

    @override
    def target_capabilities(self, others: Mapping[str, Capabilities]) -> Capabilities:
        return others[self.params.base] - {"members"}


class TrainedInFrontParams(TrainParams):
    """The training of such a stage."""

    base: TargetRef = Field(description="the defense whose model is behind it")
    batch_size: BatchSizeParam = 64
    optimiser: OptimiserParam = "adam"
    weight_decay: WeightDecayParam = 0.0


class TrainedInFront(InFront):
    """A stage that is trained on clean images, the base frozen; of its epochs the one after which the base classifies best is kept."""

    def fit_stage(self, context: FitContext, stage: Mapping[str, Any], recipe: Recipe, *, name: str) -> Target:
        """Train a stage in front of the base.

        Args:
            stage: of a transform with weights: its kind and settings.
            recipe: its loss.
            name: what its first weights are drawn for.

        Raises:
            UsageError: the base is no classifier of images.
        """
        base = context.target(self.params.base, ImageTarget)
        with seeded_init(context, name):
            target = PipelineTarget(base, [TransformSpec.model_validate(stage)])
        with frozen(base.module):
            train(context, target, recipe, self.params)
        return target
