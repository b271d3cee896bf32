"""A classifier that was trained elsewhere, for a judge or an analysis of pictures to use: of styles, of objects, an Inception for FID."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from pydantic import ConfigDict, model_validator

from robustkd.contracts import Capabilities, FitContext, Modality, Target
from robustkd.contracts.capability import ORDINARY
from robustkd.defenses.image.pretrained.external import External, ExternalParams, trained_classifier


class ExternalClassifierParams(ExternalParams):
    """Those of ``external``. What the data are does not say how the classifier's images are, nor how many classes it has."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"code": "my_model.py:build", "input_shape": [3, 224, 224], "num_classes": 27}]}
    )

    @model_validator(mode="after")
    def _says_its_sizes(self) -> ExternalClassifierParams:
        if self.saved is None and (self.input_shape is None or self.num_classes is None):
            raise ValueError(
                "say what images the classifier takes, and how many classes it has: input_shape: [3, 224, 224], num_classes: 27"
            )
        if self.classes is not None or self.restrict is not None:
            raise ValueError("classes and restrict are of data of images; the judge says which class is which concept")
        return self


class ExternalClassifier(External):
    """A classifier from elsewhere. It draws nothing: it is there for a judge to use."""

    Params = ExternalClassifierParams
    source = "the user's own network"
    modalities: ClassVar[tuple[Modality, ...]] = ("text-to-image",)

    def target_capabilities(self, others: Mapping[str, Capabilities]) -> Capabilities:
        """Those of a network, which it is."""
        found = super().target_capabilities(others)
        return ORDINARY["images"] if "gradients" in found else ORDINARY["images"] - {"gradients"}

    def fit(self, context: FitContext[Any]) -> Target:
        """Build the network, load its weights and try it.

        Raises:
            UsageError: the trained defense is no classifier.
            TargetError: it cannot be built, the weights do not fit, or it gives no logits.
        """
        p = self.params
        if p.saved is not None:
            return trained_classifier(p).to(context.device)
        own = replace(
            context,
            train=None,
            validation=None,
            input_shape=tuple(p.input_shape),
            num_classes=p.num_classes,
            classes=(),
            outputs_known=True,
            bounds=None,
            label=None,
        )
        return super().fit(own)
