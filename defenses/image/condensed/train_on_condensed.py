"""Any training on a condensed data set in the place of the campaign's.

    theta = recipe(S),     S from ``condensed-data``;     the epoch is chosen on the campaign's validation data, as ever

An epoch shows the set as often as it takes to show as many images as the training data have, so that a set of 100 images and one of
50,000 get the same number of steps. Each copy is augmented and attacked by itself.

Control: the same recipe on all data (without this defense around it), and on ``random-subset``.

Source: this package; the recipe and the condenser name their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator
from typing_extensions import override

from robustkd import plugins
from robustkd.contracts import (
    Arrays,
    BaseTarget,
    Capabilities,
    Code,
    Defense,
    FitContext,
    Params,
    SoftArrays,
    Target,
    TargetRef,
    ThreatModel,
    UsageError,
    target_references,
)
from robustkd.plugins.nested import PluginSpec
from robustkd.targets.condensed import CondensedTarget


class RecipeSpec(PluginSpec):
    """A defense that trains on images, by its kind, with its parameters."""

    group: ClassVar[plugins.Group] = "defenses"

    @override
    def make(self) -> Defense:
        defense: Defense = super().make()
        return defense


class TrainOnCondensedParams(Params):
    """What is trained, and on what."""

    data: TargetRef = Field(description="the defense of kind condensed-data whose set is trained on")
    recipe: RecipeSpec = Field(
        description="a defense that trains on images, with its parameters", examples=[{"kind": "standard", "model": "tiny-cnn"}]
    )
    repeats: int | None = Field(
        None, ge=1, description="how often an epoch shows the set; default as often as makes up the number of training images"
    )
    labels: Literal["stored", "hard"] = Field(
        "stored", description="hard: without the distributions over the classes that some condensers make beside the labels"
    )

    @field_validator("recipe")
    @classmethod
    def _trains_on_images(cls, recipe: RecipeSpec) -> RecipeSpec:
        kind = plugins.load("defenses", recipe.kind)
        if "images" not in kind.modalities or not kind.uses_data:
            raise ValueError(f"'{recipe.kind}' trains nothing on images: name one that does, such as standard, pgd-at or kd")
        return recipe


class TrainOnCondensed(Defense):
    """A training that sees a condensed data set alone."""

    Params = TrainOnCondensedParams
    source = "this package; the recipe names its own"
    uses_threat = True  # where its recipe does, which each object knows

    def __init__(self, params: Any = None) -> None:
        super().__init__(params)
        self._recipe: Defense = self.params.recipe.make()
        self.uses_threat = self._recipe.uses_threat

    @override
    def refusal(self, threat: ThreatModel) -> str | None:
        return self._recipe.refusal(threat)

    @override
    def files(self) -> list[Path]:
        return self._recipe.files()

    @override
    def code(self) -> list[Code]:
        return self._recipe.code()

    @override
    def target_capabilities(self, others: Mapping[str, Capabilities]) -> Capabilities:
        return self._recipe.target_capabilities(others)

    @override
    def connect(self, target: BaseTarget, folder: Path) -> None:
        self._recipe.connect(target, folder)

    @override
    def parts(self, target: BaseTarget) -> Mapping[str, BaseTarget]:
        return self._recipe.parts(target)

    def fit(self, context: FitContext[Arrays]) -> BaseTarget:
        """Train as the recipe does, on the set.

        Raises:
            UsageError: ``data`` names no condensed data of these classes, or the recipe cannot learn from their distributions.
        """
        arrays = self._data(context)
        times = self.params.repeats or max(1, round(len(context.train) / len(arrays)))
        shown = arrays.select(np.tile(np.arange(len(arrays)), times)) if times > 1 else arrays
        needed = target_references(self._recipe.params)
        targets = {name: context.targets[name] for name in needed}
        return self._recipe.fit(replace(context, train=shown, targets=targets))

    def _data(self, context: FitContext[Arrays]) -> Arrays:
        name, kind = self.params.data, self.params.recipe.kind
        target: Target = context.target(name, CondensedTarget)
        assert isinstance(target, CondensedTarget)
        if (target.num_classes, target.input_shape) != (context.num_classes, tuple(context.input_shape)):
            raise UsageError(
                f"the condensed data '{name}' are images of {target.input_shape} in {target.num_classes} classes, the campaign's "
                f"{tuple(context.input_shape)} in {context.num_classes}",
                fix="condense the data of this campaign",
            )
        arrays = target.arrays
        if not isinstance(arrays, SoftArrays):
            return arrays
        if self.params.labels == "hard":
            return arrays.hard()
        if not self._recipe.learns_soft_labels:
            raise UsageError(
                f"the condensed data '{name}' have distributions for labels, which '{kind}' cannot learn from",
                fix="give labels: hard, or a recipe that can: standard, pgd-at, trades, kd, rslad",
            )
        return arrays
