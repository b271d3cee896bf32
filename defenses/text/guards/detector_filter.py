"""Detector filter: a prompt that a detector of text finds unlike clean ones is held back.

    alarm(x) = score(x) - t
    t: the smallest number that lets pass all but the share alpha of the validation requests

It is a guard like ``perplexity-filter``; what it measures is a plug-in (``robustkd list detectors --modality text``).

Control: the model without it, and the detector ``perplexity`` beside any other.

Source: Alon & Kamfonas: Detecting language model attacks with perplexity (2023), arXiv:2308.14132, for detectors in front of a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field
from typing_extensions import override

from robustkd.contracts import DataError, FitContext, GenerativeTarget, Params, Prompts
from robustkd.defenses.text.guards.guard import Guard, ReadingGuardParams
from robustkd.defenses.training.networks import seeded_init
from robustkd.lazy import nn
from robustkd.scoring.detection import calibrated_threshold
from robustkd.targets.detecting import DetectorSpec
from robustkd.targets.frozen import frozen
from robustkd.targets.guarded import GuardedTarget

if TYPE_CHECKING:
    from torch import Tensor

_ROUNDING = 1e-4
"""Padding shows in the last digits; what lies on the threshold passes."""


class DetectorFilterSettings(Params):
    """The detector, and its threshold."""

    detector: DetectorSpec = Field(description="a kind of detector of text, and its parameters")
    threshold: float = Field(description="the score above which a prompt is held back")


class DetectorFilterTarget(GuardedTarget[DetectorFilterSettings]):
    """A model behind a detector of prompts, which reads with the model or with the guard's reader."""

    kind = "detector-filter"
    Settings = DetectorFilterSettings

    def __init__(
        self, model: GenerativeTarget, settings: DetectorFilterSettings, reader: GenerativeTarget | None = None
    ) -> None:
        super().__init__(model, settings, reader)
        self.scorer = settings.detector.make().build(self.reads, {})
        assert isinstance(self.module, nn.ModuleDict)
        self.module["scorer"] = self.scorer

    @property
    def reads(self) -> GenerativeTarget:
        """The model that the detector reads with."""
        return self.model if self.reader is None else self.reader

    @override
    def alarm(self, texts: Sequence[str]) -> Tensor:
        scores: Tensor = self.scorer(list(texts))
        return scores - self.settings.threshold - _ROUNDING


class DetectorFilterParams(ReadingGuardParams):
    """The model, the one that reads, and the detector."""

    detector: DetectorSpec = Field(
        description="a kind (robustkd list detectors --modality text) and its parameters", examples=["perplexity"]
    )
    false_positive_rate: float = Field(
        0.01, ge=0, lt=1, description="alpha: the share of the validation requests that may be held back"
    )


class DetectorFilter(Guard):
    """Holds back prompts that a detector finds unlike clean ones."""

    Params = DetectorFilterParams
    target = DetectorFilterTarget
    uses_data = True
    source = "Alon & Kamfonas 2023, arXiv:2308.14132"

    @override
    def fit(self, context: FitContext[Prompts]) -> GuardedTarget[Any]:
        """Let the detector learn from the training requests, and set its threshold by the validation requests.

        Raises:
            UsageError: the model, or the reader, is none that answers.
            TargetError: the detector cannot read with this model.
            DataError: there are no validation requests that it can read.
        """
        p = self.params
        if context.validation is None:
            raise DataError(
                "a detector's threshold is set by validation requests, and there are none", fix="data: {validation: 0.1}"
            )
        model, reader = self.models(context)
        with seeded_init(context, "detector"):
            target = DetectorFilterTarget(model, DetectorFilterSettings(detector=p.detector, threshold=0.0), reader)
        target.to(context.device).module.eval()
        with frozen(target.reads.module):
            p.detector.make().fit(target.scorer, target.reads, context)
        target.module.eval()
        scores = target.scorer(list(context.validation["prompt"]))
        threshold = calibrated_threshold(scores[~scores.isnan()].double().numpy(), p.false_positive_rate)
        target.settings = target.settings.model_copy(update={"threshold": threshold})
        return target
