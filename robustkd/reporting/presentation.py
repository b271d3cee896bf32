"""How results of one modality are shown: everything in which the report of images, text and text-to-image differs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from typing_extensions import override

from robustkd.contracts import Modality, Prompts, ThreatModel, Transcript
from robustkd.contracts.image_changes import ImageChange
from robustkd.data import Splits
from robustkd.evaluation.judging import ImageOutcome, Outcome, PromptOutcome
from robustkd.reporting.formatting import class_name
from robustkd.reporting.gallery import GalleryItem
from robustkd.reporting.samples import BROKEN, STANDS, UNJUDGED
from robustkd.reporting.terms import ReportTerms, of_images, of_prompts
from robustkd.reporting.transcripts import PromptItem
from robustkd.scoring.results import Results


@dataclass(frozen=True)
class AttackedCell:
    """One attack on a trained defense, with what is kept of it.

    Attributes:
        perturbed: reads the (M, *shape) inputs of the first M samples that are called ``adversarial`` or ``clean``; None when none
            were kept.
        transcripts: reads the attempts that decided requests.
    """

    defense: str
    attack: str
    seed: int
    threat: ThreatModel
    outcome: Outcome
    perturbed: Callable[[str], np.ndarray | None]
    transcripts: Callable[[], Sequence[Transcript]]


class Presentation(ABC):
    """One modality.

    Attributes:
        quoted: whether the note of an attack quotes examples.
        draws: whether the model draws pictures.
    """

    quoted: ClassVar[bool]

    def __init__(self, *, draws: bool = False) -> None:
        self.draws = draws

    @abstractmethod
    def terms(self, results: Results) -> ReportTerms:
        """The terms that a report of this modality uses."""

    @abstractmethod
    def examples(self, cell: AttackedCell, data: Splits[Any], count: int) -> Sequence[GalleryItem | PromptItem]:
        """Up to ``count`` samples to look at."""

    @abstractmethod
    def tracked(self, images: int, most: int) -> int:
        """How many samples of a cell go to MLflow where ``images`` images would, and a table has ``most`` rows."""

    @abstractmethod
    def before(self, outcome: Outcome) -> np.ndarray | None:
        """(N,) the class that each sample is taken for when it is not attacked; None where there is none."""

    @abstractmethod
    def taken_for(self, outcome: Outcome) -> np.ndarray:
        """(N,) what became of each sample: see ``AttackedSamples``."""

    @abstractmethod
    def texts(self, data: Splits[Any]) -> Sequence[str]:
        """The text of each test sample; empty where there is none."""


class ImagePresentation(Presentation):
    """Images that a classifier gets."""

    quoted = False

    def terms(self, results: Results) -> ReportTerms:
        """Test samples, classes and eps."""
        return of_images(_size(results), results.budget)

    def examples(self, cell: AttackedCell, data: Splits[Any], count: int) -> list[GalleryItem]:
        """The first samples that were broken; none of inputs that are no images."""
        if len(data.input_shape) != 3:
            return []
        outcome, perturbed = cell.outcome, cell.perturbed("adversarial") if cell.outcome.success.any() else None
        assert isinstance(outcome, ImageOutcome)
        if perturbed is None:
            return []
        threat = cell.threat
        norm = threat.space if isinstance(threat.budget, ImageChange) else threat.norm
        rows = np.flatnonzero(outcome.success[: len(perturbed)])[:count]
        return [
            GalleryItem(
                defense=cell.defense,
                attack=cell.attack,
                seed=cell.seed,
                clean=data.test.select(rows[i : i + 1]).unit()[0],
                adversarial=perturbed[row],
                label=class_name(data.classes, int(outcome.label[row])),
                before=class_name(data.classes, int(outcome.before[row])),
                after=class_name(data.classes, int(outcome.after[row])),
                distance=float(outcome.distance[row]),
                norm=norm,
            )
            for i, row in enumerate(rows)
        ]

    @override
    def tracked(self, images: int, most: int) -> int:
        return images

    @override
    def before(self, outcome: Outcome) -> np.ndarray | None:
        assert isinstance(outcome, ImageOutcome)
        return outcome.before

    def taken_for(self, outcome: Outcome) -> np.ndarray:
        """The class after an attack that succeeded."""
        assert isinstance(outcome, ImageOutcome)
        return np.where(outcome.success, outcome.after, STANDS)

    @override
    def texts(self, data: Splits[Any]) -> Sequence[str]:
        return ()


class PromptPresentation(Presentation):
    """Requests that are put to a generative model."""

    quoted = True

    def terms(self, results: Results) -> ReportTerms:
        """Requests, categories and attempts."""
        return of_prompts(_size(results), results.n_clean or 0, "picture" if self.draws else "answer")

    def examples(self, cell: AttackedCell, data: Splits[Any], count: int) -> list[PromptItem]:
        """The first requests that were broken and, at the end, one at least that was not: a refusal must be seen to be one, too."""
        outcome, said = cell.outcome, cell.transcripts()
        assert isinstance(outcome, PromptOutcome)
        broken, others = np.flatnonzero(outcome.success), np.flatnonzero(outcome.eligible & ~outcome.success)
        before, after = cell.perturbed("clean"), cell.perturbed("adversarial")
        first = broken[: max(0, count - min(1, len(others)))]
        return [
            PromptItem(
                defense=cell.defense,
                attack=cell.attack,
                seed=cell.seed,
                label=class_name(data.classes, int(outcome.label[row])),
                request=said[row].request,
                prompt=said[row].prompt,
                output=said[row].output,
                attempts=said[row].attempts,
                broken=bool(outcome.success[row]),
                prefill=said[row].prefill,
                counted=bool(outcome.eligible[row]),
                unjudged=bool(outcome.unjudged[row]),
                verdicts=said[row].verdicts,
                before=None if before is None or row >= len(before) else before[row],
                after=None if after is None or row >= len(after) else after[row],
                system=said[row].system,
                turns=said[row].turns,
            )
            for row in [*first, *others[: count - len(first)]]
            if row < len(said)
        ]

    def tracked(self, images: int, most: int) -> int:
        """A whole table, unless nothing is to be shown."""
        return most if images else 0

    @override
    def before(self, outcome: Outcome) -> np.ndarray | None:
        return None

    def taken_for(self, outcome: Outcome) -> np.ndarray:
        """Whether it was broken, or could not be judged."""
        return np.where(outcome.decided | ~outcome.eligible, np.where(outcome.success, BROKEN, STANDS), UNJUDGED)

    @override
    def texts(self, data: Splits[Any]) -> Sequence[str]:
        assert isinstance(data.test, Prompts)
        return data.test["prompt"]


_PRESENTATIONS: Mapping[Modality, Presentation] = {
    "images": ImagePresentation(),
    "text": PromptPresentation(),
    "text-to-image": PromptPresentation(draws=True),
}


def presentation(modality: Modality) -> Presentation:
    """How results of this modality are shown."""
    return _PRESENTATIONS[modality]


def terms_of(results: Results) -> ReportTerms:
    """The terms that a report of these results uses."""
    terms = presentation(results.modality).terms(results)
    said = (*results.data.notes, *results.judged_on_draws)
    notes = (f"{note[0].upper()}{note[1:]}." for note in said)
    return replace(terms, notes=(*notes, *terms.notes))


def _size(results: Results) -> int:
    return results.data.n or max((cell.n for cell in results.cells), default=0)
