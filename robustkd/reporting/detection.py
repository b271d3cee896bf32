"""What detectors made of the attacks: errors of the model, what the detector caught of them, and its false alarms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from robustkd.reporting.formatting import interval, number, percent
from robustkd.reporting.summary import cells_by_pair, mean
from robustkd.scoring.detection import Detection, Rate
from robustkd.scoring.results import CellResult, Results


@dataclass(frozen=True)
class DetectionTerms:
    """The heads of the columns, and what they mean."""

    head: tuple[str, ...]
    note: str


_OF_IMAGES = DetectionTerms(
    (
        "classifier wrong",
        "of these detected",
        "wrong and undetected",
        "false alarms",
        "right and accepted",
        "AUROC",
        "FPR at 95 %",
    ),
    "Shares of all test samples, but for those detected; each with its 95 % interval, over several seeds the envelope of theirs. An "
    "attack succeeds where the classifier is wrong and the detector accepts. Right and accepted, which is the robust accuracy, counts "
    "false alarms as errors. AUROC is the chance that a sample that fools the classifier scores higher than a clean one, and FPR at "
    "95 % the share of clean samples that a threshold would reject that rejects 95 % of those.",
)
_OF_PROMPTS = DetectionTerms(
    (
        "model alone complies",
        "of these rejected",
        "complied with behind it",
        "false alarms",
        "withstood",
        "AUROC",
        "FPR at 95 %",
    ),
    "Shares of all requests, but for those rejected, and for false alarms, which are of the harmless requests; each with its 95 % "
    "interval, over several seeds the envelope of theirs. The model alone is asked each attempt, until it complies with one. An attack "
    "succeeds where the model complies behind its guards. AUROC is the chance that a prompt that the model alone complies with scores "
    "higher than a harmless one, and FPR at 95 % the share of harmless ones that a threshold would reject that rejects 95 % of those; a "
    "guard without a score rejects or does not.",
)


@dataclass(frozen=True)
class DetectionRow:
    """One attack on one defense with a detector, over its seeds; ``values`` are in the order of ``DetectionTerms.head``."""

    defense: str
    attack: str
    values: tuple[str, ...]


def detection_terms(results: Results) -> DetectionTerms:
    """Those of a classifier with a detector, or of a language model with guards."""
    return _OF_IMAGES if results.modality == "images" else _OF_PROMPTS


def detection_rows(results: Results) -> list[DetectionRow]:
    """A row for each pair that has a detector, in the campaign's order."""
    found = []
    for (defense, attack), cells in cells_by_pair(results).items():
        told = [(cell, cell.detection) for cell in cells if cell.detection is not None]
        if told:
            found.append(DetectionRow(defense, attack, _values(told)))
    return found


def _values(told: Sequence[tuple[CellResult, Detection]]) -> tuple[str, ...]:
    seeds = [detection for _, detection in told]
    robust = [(cell.robust_accuracy, cell.ci_low or 0.0, cell.ci_high or 1.0) for cell, _ in told]
    return (
        _rate([detection.fooled for detection in seeds]),
        _rate([detection.detected for detection in seeds]),
        _rate([detection.evaded for detection in seeds]),
        _rate([detection.false_alarms for detection in seeds]),
        _shown(robust),
        number(mean(detection.auroc for detection in seeds), 2),
        percent(mean(detection.fpr95 for detection in seeds)),
    )


def _rate(rates: Sequence[Rate]) -> str:
    return _shown([(rate.share, rate.ci_low, rate.ci_high) for rate in rates])


def _shown(shares: Sequence[tuple[float | None, float, float]]) -> str:
    known = [(share, low, high) for share, low, high in shares if share is not None]
    if not known:
        return percent(None)
    around = interval(min(low for _, low, _ in known), max(high for _, _, high in known))
    return f"{percent(mean(share for share, _, _ in known))} ({around})"
