"""Detector filter: a prompt, or an answer, that a detector of text finds unlike clean ones is held back.

    alarm(x) = score(x) - t
    t: the smallest number that lets pass all but the share alpha of the validation requests, or of the model's answers to them

It is a guard like ``perplexity-filter``; what it measures is a plug-in (``robustkd list detectors --modality text``).

Where answers are read (``reads: answer``) the detector learns from the model's own answers to training requests, and no prompt is held
back. What a prompt makes the model say is not differentiated, so no search by a loss goes through it: attack it by its answers (``pair``).

Control: the model without it, and the detector ``perplexity`` beside any other.

Source: Alon & Kamfonas: Detecting language model attacks with perplexity (2023), arXiv:2308.14132, for detectors in front of a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field
from typing_extensions import override

from robustkd.contracts import (
    DataError,
    Filtered,
    FitContext,
    GenerativeTarget,
    Params,
    Prompts,
    Request,
    TargetError,
    Unanswered,
)
from robustkd.defenses.text.guards.guard import Guard, ReadingGuardParams
from robustkd.defenses.training.networks import seeded_init
from robustkd.evaluation.answers import respond
from robustkd.lazy import nn
from robustkd.scoring.detection import calibrated_threshold
from robustkd.targets.detecting import DetectorSpec
from robustkd.targets.frozen import frozen
from robustkd.targets.guarded import GuardedTarget
from robustkd.targets.thoughts import answer_of

if TYPE_CHECKING:
    from torch import Tensor

_ROUNDING = 1e-4
"""Padding shows in the last digits; what lies on the threshold passes."""
_ANSWERS = 512
"""Training requests whose answers a detector learns from, at most, spread evenly."""
Reads = Literal["prompt", "answer"]


class DetectorFilterSettings(Params):
    """The detector, and its threshold."""

    detector: DetectorSpec = Field(description="a kind of detector of text, and its parameters")
    threshold: float = Field(description="the score above which a text is held back")
    reads: Reads = Field("prompt", description="what the detector looks at: the prompt, or the model's answer")


class DetectorFilterTarget(GuardedTarget[DetectorFilterSettings]):
    """A model with a detector of prompts in front of it, or one of answers behind it, which reads with the model or the reader."""

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

    @property
    @override
    def scored(self) -> bool:
        return self.filters

    @property
    @override
    def filters(self) -> bool:
        return self.settings.reads == "prompt"

    @override
    def alarm(self, texts: Sequence[str]) -> Tensor:
        return self._above(texts) if self.filters else super().alarm(texts)

    @override
    def respond(self, asked: Sequence[Request]) -> list[Any]:
        """The model's answers, as far as the prompts, or the answers themselves, pass."""
        if self.filters:
            return super().respond(asked)
        answers = list(self.model.respond(asked))
        told = _told(answers)
        for place, above in zip(told, self._above(list(told.values())).tolist() if told else (), strict=True):
            if np.isnan(above):
                answers[place] = Unanswered(f"[the guard {self.kind} cannot read this answer]")
            elif above > 0:
                answers[place] = Filtered(f"[an answer held back by the guard {self.kind}]")
        return answers

    def _above(self, texts: Sequence[str]) -> Tensor:
        scores: Tensor = self.scorer(list(texts))
        return scores - self.settings.threshold - _ROUNDING


class DetectorFilterParams(ReadingGuardParams):
    """The model, the one that reads, the detector, and what it looks at."""

    detector: DetectorSpec = Field(
        description="a kind (robustkd list detectors --modality text) and its parameters", examples=["perplexity"]
    )
    false_positive_rate: float = Field(
        0.01, ge=0, lt=1, description="alpha: the share of the validation requests that may be held back"
    )
    reads: Reads = Field("prompt", description="what the detector looks at: the prompt, or the model's answer")


class DetectorFilter(Guard):
    """Holds back prompts, or answers, that a detector finds unlike clean ones."""

    Params = DetectorFilterParams
    target = DetectorFilterTarget
    uses_data = True
    source = "Alon & Kamfonas 2023, arXiv:2308.14132"

    @override
    def fit(self, context: FitContext[Prompts]) -> GuardedTarget[Any]:
        """Let the detector learn from the training requests, or the answers to them, and set its threshold by the validation requests.

        Raises:
            UsageError: the model, or the reader, is none that answers.
            TargetError: the detector cannot read with this model, or the model answers nothing.
            DataError: there are no validation requests that it can read.
        """
        p = self.params
        if context.validation is None:
            raise DataError(
                "a detector's threshold is set by validation requests, and there are none", fix="data: {validation: 0.1}"
            )
        model, reader = self.models(context)
        with seeded_init(context, "detector"):
            settings = DetectorFilterSettings(detector=p.detector, threshold=0.0, reads=p.reads)
            target = DetectorFilterTarget(model, settings, reader)
        target.to(context.device).module.eval()
        train, validation = context.train, context.validation
        if p.reads == "answer":
            train, validation = (_answers(model, part) for part in (_spread(train, _ANSWERS), validation))
        with frozen(target.reads.module):
            p.detector.make().fit(target.scorer, target.reads, replace(context, train=train, validation=validation))
        target.module.eval()
        scores = target.scorer(list(validation["prompt"]))
        threshold = calibrated_threshold(scores[~scores.isnan()].double().numpy(), p.false_positive_rate)
        target.settings = target.settings.model_copy(update={"threshold": threshold})
        return target


def _told(answers: Sequence[Any]) -> dict[int, str]:
    """What is answered at which places, without thoughts; nothing where there is no answer."""
    given = {place: answer for place, answer in enumerate(answers) if not isinstance(answer, Filtered | Unanswered)}
    return {place: said for place, answer in given.items() if (said := answer_of(answer))}


def _answers(model: GenerativeTarget, requests: Prompts) -> Prompts:
    """The model's answers to requests, in their place.

    Raises:
        TargetError: it answers nothing.
    """
    told = tuple(_told(respond(model, requests.asked(), None)).values())
    if not told:
        raise TargetError("a detector of answers has none to learn from: the model says nothing", fix="guard another model")
    return Prompts({"prompt": told}, np.zeros(len(told), dtype=np.int64))


def _spread(requests: Prompts, most: int) -> Prompts:
    """At most so many requests, evenly spread."""
    return requests.select(np.unique(np.linspace(0, len(requests) - 1, min(most, len(requests))).astype(np.int64)))
