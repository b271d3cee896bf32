"""The check contract: evidence on whether an evaluation can be believed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from robustkd.contracts.attack import AttackKind, LossFamily
from robustkd.contracts.params import Params
from robustkd.contracts.threat import ThreatModel

if TYPE_CHECKING:
    import numpy as np

    from robustkd.contracts.attack import Batch
    from robustkd.contracts.target import Target

Severity = Literal["severe", "warning", "info"]
Verdict = Literal["credible", "suspect", "not credible"]


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        fired: whether the symptom is there.
        evidence: the numbers behind it.
        fix: what to do when it fired.
        applicable: False when the campaign lacks what the check needs; ``evidence["reason"]`` says what.
    """

    name: str
    severity: Severity
    fired: bool
    evidence: dict[str, Any] = field(default_factory=dict)
    fix: str = ""
    applicable: bool = True


@dataclass(frozen=True)
class AttackEvidence:
    """One finished attack on the target, as checks see it: per-sample arrays in the order of ``CheckContext.batch``.

    Attributes:
        standing: (N,) bool, classified rightly before and after.
        correct_before: (N,) bool.
        adversarial: (N, *shape) float32, or None when perturbations were not kept.
    """

    name: str
    kind: AttackKind
    loss_family: LossFamily
    gradients: bool
    iterative: bool
    threat: ThreatModel
    correct_before: np.ndarray
    standing: np.ndarray
    distance: np.ndarray
    adversarial: np.ndarray | None = None


@dataclass(frozen=True)
class CheckContext:
    """What a check may use: the target, the attacked samples, and what every attack found."""

    target: Target
    batch: Batch
    threat: ThreatModel
    attacks: Mapping[str, AttackEvidence]
    seed: int


class Check(ABC):
    """One symptom: a rule, its severity, and ``run``, which returns the evidence.

    Attributes:
        severity: ``severe`` makes the verdict `not credible`, ``warning`` makes it `suspect`, ``info`` changes nothing.
        rule: the rule in one sentence, with its threshold.
        source: where the rule or the threshold comes from.
    """

    Params: ClassVar[type[Params]] = Params
    severity: ClassVar[Severity] = "warning"
    rule: ClassVar[str] = ""
    version: ClassVar[str] = "1"
    source: ClassVar[str] = ""
    name: ClassVar[str]

    def __init__(self, params: Any = None) -> None:
        self.params: Any = self.Params() if params is None else params

    @abstractmethod
    def run(self, context: CheckContext) -> Finding:
        """Look for the symptom."""

    def finding(self, fired: bool, fix: str = "", **evidence: Any) -> Finding:
        """A ``Finding`` of this check."""
        return Finding(self.name, self.severity, fired, evidence, fix)

    def not_applicable(self, reason: str) -> Finding:
        """A ``Finding`` that says the campaign lacks what this check needs."""
        return Finding(self.name, self.severity, False, {"reason": reason}, "", applicable=False)
