"""One network under one evaluation: what was reported, what is true, and what the verdict says."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from unittest.mock import patch

import torch

import robustkd
from exam.evaluations import EVALUATIONS
from exam.family import Network
from exam.lab import Subject
from exam.parameters import Value
from exam.truth import truth
from robustkd.evaluation.checks import check_names

SAMPLES = 120
LIMIT = 0.05
"""How far a number may be above the truth."""


@dataclass(frozen=True)
class Pair:
    """The outcome of one audit.

    Attributes:
        network, family, honest, parameters: see ``Network``.
        evaluation: its name in ``EVALUATIONS``.
        clean, truth, reported, remedy: accuracies; the latter two None where there is none.
        verdict: the audit's.
        fired: the checks that fired, and the attacks that failed.
        told: what those that fired say and suggest.
        seconds: of the audit.
    """

    network: str
    family: str
    honest: bool
    parameters: dict[str, Value]
    evaluation: str
    clean: float
    truth: float
    reported: float | None
    remedy: float | None
    verdict: str
    fired: list[str]
    told: str
    seconds: float

    @property
    def excess(self) -> float:
        """How far the reported number is above the truth."""
        return 0.0 if self.reported is None else self.reported - self.truth

    @property
    def weak(self) -> bool:
        """Whether the evaluation was too weak for the network: its number is above the truth by more than ``LIMIT``."""
        return self.excess > LIMIT

    @property
    def believed(self) -> bool:
        return self.verdict == "credible"

    @property
    def named(self) -> str:
        """What the checks that fired make of it: ``weak`` attacks, a ``masked`` gradient, or neither of the two in words."""
        masked, weak = ("mislead" in self.told or "mask" in self.told), "weak" in self.told
        return "masked" if masked else "weak" if weak else "-"


@dataclass
class Examined:
    """A trained network with its truth."""

    network: Network
    subject: Subject
    clean: float
    truth: float
    seconds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, network: Network, samples: int = SAMPLES) -> Examined:
        began = time.process_time()
        subject = network.build(samples)
        trained = time.process_time()
        clean, robust = truth(subject, probe=not network.honest)
        seconds = {"training": trained - began, "truth": time.process_time() - trained}
        return cls(network, subject, clean, robust, seconds)

    def audit(self, name: str, without: Sequence[str] = ()) -> Pair:
        """The verdict on one evaluation, with all standard checks but those named ``without``."""
        subject, attacks, began = self.subject, EVALUATIONS[name].attacks, time.process_time()

        def remaining(level: robustkd.contracts.Level) -> list[str]:
            return [check for check in check_names(level) if check not in without]

        torch.manual_seed(0)
        with patch("robustkd.api.check_names", remaining):
            report = robustkd.audit(
                subject.model,
                subject.test.x,
                subject.test.y,
                norm=subject.norm,
                eps=subject.eps,
                level="standard",
                **({} if attacks is None else {"attacks": attacks}),
            )
        fired = [finding for finding in report.findings if finding.fired and finding.severity != "info"]
        unrun = [finding.name for finding in report.findings if finding.outcome == "not run"]
        return Pair(
            network=self.network.name,
            family=self.network.family,
            honest=self.network.honest,
            parameters=self.network.parameters,
            evaluation=name,
            clean=self.clean,
            truth=self.truth,
            reported=report.robust_accuracy,
            remedy=report.remedy.robust_accuracy if report.remedy else None,
            verdict=str(report.verdict),
            fired=[
                *(finding.name for finding in fired),
                *(f"failed: {name}" for name in report.failed),
                *(f"not run: {name}" for name in unrun),
            ],
            told=" ".join(f"{finding.explanation} {finding.fix}" for finding in fired),
            seconds=time.process_time() - began,
        )
