"""What ``robustkd.attack``, ``evaluate`` and ``audit`` return."""

from __future__ import annotations

import os
import threading
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from robustkd.contracts import Finding, UsageError, Verdict
from robustkd.contracts.json_value import JsonValue
from robustkd.evaluation.judging import ImageOutcome
from robustkd.evaluation.saved import Attacked, save
from robustkd.scoring.intervals import share_interval
from robustkd.scoring.picture import Measured
from robustkd.scoring.remedy import Remedy
from robustkd.scoring.tabular import Tabular, interval, percent

if TYPE_CHECKING:
    from torch import Tensor

TURN = threading.RLock()
"""Held while a model is asked: the networks' modes and the global generators are shared by all threads."""


@dataclass(frozen=True, repr=False)
class AttackReport(Tabular):
    """One attack on one model, sample by sample. Its DataFrame has a row for each sample.

    Attributes:
        adversarial: (N, *shape) the inputs found, on the CPU.
        outcome: per-sample arrays: predictions before and after, success, distance, passes (see ``ImageOutcome``).
        attacked: the model, the attack and the samples; None in a copy that was pickled, which is no way to keep a model.
    """

    adversarial: Tensor
    outcome: ImageOutcome
    attacked: Attacked | None = field(default=None, compare=False)

    def __getstate__(self) -> dict[str, object]:
        return vars(self) | {"attacked": None}

    def save(self, path: str | os.PathLike[str], ids: np.ndarray | None = None) -> str:
        """Write the inputs found, with the clean ones and what became of each, and say what was written.

        A NumPy archive, ``adv.npz``, holds everything as it is: ``x``, ``adversarial``, ``y``, ``prediction``,
        ``adversarial_prediction``, ``success``, ``distance``, ``norm``, ``eps`` and ``id``, a row for each sample, and ``goals`` of a
        targeted attack. Any other name is a folder: ``clean/`` and ``adversarial/`` with PNG images, and ``samples.csv``. Their 8
        bits can undo a success, so the model is asked about the rounded images anew, and the table says what it answered.

        Args:
            path: the archive, or a folder that is new or empty.
            ids: (N,) what the samples are called; 0..N-1 by default.

        Raises:
            UsageError: another kind of file, a folder that holds something, inputs that are no images of 1 or 3 channels, or a report
                that was pickled.
            StoreError: it cannot be written.
        """
        if self.attacked is None:
            raise UsageError("this report was pickled, and its model was not", fix="save the inputs before, or attack again")
        with TURN:
            return save(path, self.attacked, self.adversarial, self.outcome, ids)

    @property
    def success(self) -> np.ndarray:
        """(N,) bool: classified rightly before the attack, and wrongly after it."""
        return self.outcome.success

    @property
    def robust_accuracy(self) -> float:
        """Share of all samples classified rightly before and after this attack: an upper bound on robust accuracy.

        Of a model that draws random numbers it is the expected accuracy, over ``draws`` draws of each sample.
        """
        return float(self.outcome.robust_share.mean())

    @property
    def draws(self) -> int:
        """On how many draws each sample was judged: 1, or more of a model that draws random numbers."""
        return self.outcome.draws

    @property
    def clean_accuracy(self) -> float:
        """Share of the samples classified rightly before."""
        return float(self.outcome.clean_share.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of ``robust_accuracy``."""
        return share_interval(self.outcome.robust_share)

    def to_dict(self) -> dict[str, JsonValue]:
        """The numbers of the report, without those of each sample."""
        low, high = self.interval
        return {
            "n": len(self.outcome),
            "clean_accuracy": self.clean_accuracy,
            "robust_accuracy": self.robust_accuracy,
            "ci_low": low,
            "ci_high": high,
            "forward_passes": int(self.outcome.forwards.sum()),
            "backward_passes": int(self.outcome.backwards.sum()),
        }

    def rows(self) -> list[dict[str, JsonValue]]:
        """What became of each sample (see ``ImageOutcome``)."""
        columns = {name: array.tolist() for name, array in self.outcome.columns().items() if array.ndim == 1}
        if self.draws > 1:
            columns |= {"clean_share": self.outcome.clean_share.tolist(), "robust_share": self.outcome.robust_share.tolist()}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def caption(self) -> str:
        """Accuracy without and under the attack; one attack alone has no verdict."""
        robust = f"{percent(self.robust_accuracy)} {interval(*self.interval)} under one attack (an upper bound, not checked)"
        return f"n = {len(self.outcome)}{drawn(self.draws)}, clean accuracy {percent(self.clean_accuracy)}, robust accuracy {robust}"

    def shown(self) -> list[dict[str, str]]:
        """The numbers as text, in one row."""
        numbers = self.to_dict()
        return [
            {
                "n": str(numbers["n"]),
                "clean accuracy": percent(self.clean_accuracy),
                "robust accuracy": percent(self.robust_accuracy),
                "95 % interval": interval(*self.interval),
                "forward passes": str(numbers["forward_passes"]),
                "backward passes": str(numbers["backward_passes"]),
            }
        ]

    def measured(self) -> list[Measured]:
        """The robust accuracy under this attack."""
        return [Measured("robust accuracy", self.robust_accuracy, *self.interval, self.clean_accuracy)]


@dataclass(frozen=True, repr=False)
class EvaluationReport(Tabular):
    """A model under several attacks: the worst case per sample, and whether it can be believed. Its DataFrame has a row for each attack.

    Attributes:
        clean_accuracy, robust_accuracy: shares of all samples; the latter None when no attack gave a number.
        interval: 95 % Wilson interval of ``robust_accuracy``.
        verdict: ``credible``, ``suspect`` or ``not credible``; None where no check was asked for (``level="none"``).
        findings: every check with its evidence.
        attacks: each attack's own report, by name.
        standing: (N,) bool, classified rightly and broken by no attack; on half of the draws or more, of a model that draws random
            numbers.
        remedy: what stronger attacks leave, where a check named some.
        failed: attacks without a number, and why: what they returned broke the threat model (`invalid`), or the model failed.
        draws: on how many draws each sample was judged: 1, or more of a model that draws random numbers, whose accuracies are expected
            ones.
    """

    clean_accuracy: float
    robust_accuracy: float | None
    interval: tuple[float, float]
    verdict: Verdict | None
    findings: tuple[Finding, ...]
    attacks: dict[str, AttackReport]
    standing: np.ndarray
    remedy: Remedy | None = None
    failed: dict[str, str] = field(default_factory=dict)
    draws: int = 1

    def to_dict(self) -> dict[str, JsonValue]:
        """The numbers and the evidence of every check, without the samples."""
        return {
            "verdict": self.verdict,
            "n": len(self.standing),
            "clean_accuracy": self.clean_accuracy,
            "robust_accuracy": self.robust_accuracy,
            "ci_low": self.interval[0],
            "ci_high": self.interval[1],
            "attacks": {name: attack.robust_accuracy for name, attack in self.attacks.items()},
            "failed": self.failed,
            "remedy": asdict(self.remedy) if self.remedy else None,
            "checks": [asdict(finding) for finding in self.findings],
            "draws": self.draws,
        }

    def measured(self) -> list[Measured]:
        """The worst case, then each attack."""
        worst = Measured("worst case", self.robust_accuracy, *self.interval, self.clean_accuracy)
        alone = [Measured(name, one.robust_accuracy, *one.interval, one.clean_accuracy) for name, one in self.attacks.items()]
        return [worst, *alone]

    def rows(self) -> list[dict[str, JsonValue]]:
        """The worst case with its verdict, then each attack; one that failed has no numbers."""
        low, high = self.interval
        outcomes = [report.outcome for report in self.attacks.values()]
        worst: dict[str, JsonValue] = {
            "n": len(self.standing),
            "clean_accuracy": self.clean_accuracy,
            "robust_accuracy": self.robust_accuracy,
            "ci_low": low,
            "ci_high": high,
            "forward_passes": sum(int(outcome.forwards.sum()) for outcome in outcomes),
            "backward_passes": sum(int(outcome.backwards.sum()) for outcome in outcomes),
        }
        return [
            {"attack": "worst case", **worst, "verdict": self.verdict},
            *({"attack": name, **report.to_dict(), "verdict": None} for name, report in self.attacks.items()),
            *({"attack": name, **dict.fromkeys(worst), "verdict": None} for name in self.failed),
        ]

    def caption(self) -> str:
        """The worst case, its interval and its verdict, with the checks that fired."""
        number = "no number" if self.robust_accuracy is None else f"{percent(self.robust_accuracy)} {interval(*self.interval)}"
        fired = ", ".join(finding.name for finding in self.findings if finding.fired)
        verdict = (self.verdict or "not checked") + (f" ({fired})" if fired else "")
        clean = f"n = {len(self.standing)}{drawn(self.draws)}, clean accuracy {percent(self.clean_accuracy)}"
        return f"{clean}, robust accuracy {number}, {verdict}"

    def shown(self) -> list[dict[str, str]]:
        """The worst case with its verdict, then each attack."""
        rows = [
            ("worst case", percent(self.robust_accuracy), interval(*self.interval), self.verdict or "not checked"),
            *((name, percent(one.robust_accuracy), interval(*one.interval), "") for name, one in self.attacks.items()),
            *((name, percent(None), interval(None, None), reason) for name, reason in self.failed.items()),
        ]
        return [dict(zip(("attack", "robust accuracy", "95 % interval", "verdict"), row, strict=True)) for row in rows]

    def __str__(self) -> str:
        low, high = self.interval
        fired = ", ".join(finding.name for finding in self.findings if finding.fired)
        unrun = [finding.name for finding in self.findings if finding.outcome == "not run"]
        number = "no number" if self.robust_accuracy is None else f"{self.robust_accuracy:6.1%}   [{low:.1%}, {high:.1%}]"
        lines = [
            f"clean accuracy  {self.clean_accuracy:6.1%}   n = {len(self.standing)}{drawn(self.draws)}",
            f"robust accuracy {number}   {self.verdict or 'not checked'}" + (f" ({fired})" if fired else ""),
        ]
        if unrun:
            lines.append(f"checks not run  {', '.join(unrun)}")
        if self.remedy:
            steps = ", ".join(f"{name} {left:.1%}" for name, left in self.remedy.steps.items())
            steps += f"; {self.remedy.stopped}" if self.remedy.stopped else ""
            lines.append(f"with remedy     {self.remedy.robust_accuracy:6.1%}   ({steps or 'none could be used'})")
        width = max(20, *map(len, [*self.attacks, *self.failed]))
        lines += [f"  {name:<{width}} {report.robust_accuracy:6.1%}" for name, report in self.attacks.items()]
        return "\n".join([*lines, *(f"  {name:<{width}} {why}" for name, why in self.failed.items())])


def drawn(draws: int) -> str:
    """On how many draws each sample was judged, in words; empty where it was one."""
    return f", each judged on {draws} draws" if draws > 1 else ""
