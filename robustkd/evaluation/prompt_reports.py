"""What ``robustkd.attack``, ``evaluate`` and ``audit`` return where requests are attacked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from robustkd.contracts import Finding, StoreError, Transcript, UsageError, Verdict
from robustkd.contracts.json_value import JsonValue
from robustkd.evaluation.judging import PromptOutcome
from robustkd.evaluation.transcripts import transcript_lines
from robustkd.scoring.detection import Detection
from robustkd.scoring.intervals import share_interval
from robustkd.scoring.tabular import Tabular, interval, percent
from robustkd.scoring.worst_case import worst_case


@dataclass(frozen=True, repr=False)
class PromptAttackReport(Tabular):
    """One attack on one model that answers, request by request. Its DataFrame has a row for each request.

    Attributes:
        outcome: per-request arrays: success, attempts, passes, whether it could be judged (see ``PromptOutcome``).
        transcripts: of each request, the attempt that decided it: the first that succeeded, else the last that could be judged.
        benign: (M,) bool, which harmless requests the model complies with; None where none were given.
        harmless_alarms: of a local language model with guards, (M,) how far each harmless request is above what they let pass.
    """

    outcome: PromptOutcome
    transcripts: tuple[Transcript, ...]
    benign: np.ndarray | None = None
    harmless_alarms: np.ndarray | None = None

    @property
    def success(self) -> np.ndarray:
        """(N,) bool: the requests that the attack broke."""
        return self.outcome.success

    @property
    def robust_accuracy(self) -> float:
        """Share of all requests that are known to have withstood this attack: an upper bound on robust accuracy."""
        return float(self.outcome.robust_share.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of ``robust_accuracy``."""
        return share_interval(self.outcome.robust_share)

    @property
    def unjudged(self) -> float:
        """Share of the requests of which no answer could be judged: they count neither as broken nor as robust."""
        return float(self.outcome.unjudged.mean())

    @property
    def useful(self) -> float | None:
        """Share of the harmless requests that the model complies with; None where none were given."""
        return None if self.benign is None else float(self.benign.mean())

    @property
    def detection(self) -> Detection | None:
        """What the model's guards made of the attack; None of a served model, of one without guards, and where they read nothing."""
        return self.outcome.detection_beside(self.harmless_alarms)

    def save(self, path: str | os.PathLike[str]) -> str:
        """Write the transcripts as JSON lines, which ``test-cases`` reads as prompts for these requests, and say what was written.

        Raises:
            UsageError: the file is no ``.jsonl``.
            StoreError: it cannot be written.
        """
        file = Path(path)
        if file.suffix != ".jsonl":
            raise UsageError(f"{file} is no file of JSON lines", fix="give it a name such as transcripts.jsonl")
        try:
            file.write_text(transcript_lines(self.transcripts), encoding="utf-8")
        except OSError as error:
            raise StoreError(f"{file} cannot be written: {error.strerror or error}") from error
        return f"{file}: {len(self.transcripts)} requests, {int(self.success.sum())} of them broken"

    def to_dict(self) -> dict[str, JsonValue]:
        """The numbers of the report, without those of each request."""
        low, high = self.interval
        return {
            "n": len(self.outcome),
            "useful": self.useful,
            "robust_accuracy": self.robust_accuracy,
            "ci_low": low,
            "ci_high": high,
            "unjudged": self.unjudged,
            "attempts": int(self.outcome.attempts.sum()),
            "forward_passes": int(self.outcome.forwards.sum()),
            "backward_passes": int(self.outcome.backwards.sum()),
        }

    def rows(self) -> list[dict[str, JsonValue]]:
        """What became of each request, with the attempt that decided it."""
        columns = {name: array.tolist() for name, array in self.outcome.columns().items()}
        numbers = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        return [row | _said(one) for row, one in zip(numbers, self.transcripts, strict=True)]

    def caption(self) -> str:
        """Usefulness and robust accuracy; one attack alone has no verdict."""
        robust = f"{percent(self.robust_accuracy)} {interval(*self.interval)} under one attack (an upper bound, not checked)"
        return f"n = {len(self.outcome)}, useful {percent(self.useful)}, robust accuracy {robust}{_doubt(self.unjudged)}"

    def shown(self) -> list[dict[str, str]]:
        """A row for each request: whether it was broken, by what, and what the model answered."""
        broken = {True: "broken", False: "stands"}
        return [
            {
                "request": one.request,
                "": "not judged" if unjudged else broken[bool(success)],
                "attempts": str(one.attempts),
                "prompt": one.prompt,
                "answer": one.output,
            }
            for one, success, unjudged in zip(self.transcripts, self.success, self.outcome.unjudged, strict=True)
        ]


@dataclass(frozen=True, repr=False)
class PromptEvaluationReport(Tabular):
    """A model that answers under several attacks: the worst case per request, and whether it can be believed.

    Its DataFrame has a row for each attack.

    Attributes:
        useful: share of the harmless requests that the model complies with; None where none were given.
        robust_accuracy: share of all requests that are known to have withstood every attack on the prompt; None when none gave a number.
        interval: 95 % Wilson interval of ``robust_accuracy``.
        verdict: ``credible``, ``suspect`` or ``not credible``; None where no check was asked for (``level="none"``).
        findings: every check with its evidence.
        attacks: each attack's own report, by name.
        beside: those of them that have another threat model than the number (the beginning of an answer, embeddings), by name.
        standing: (N,) bool, withstood every attack on the prompt.
        failed: attacks without a number, and why.
    """

    useful: float | None
    robust_accuracy: float | None
    interval: tuple[float, float]
    verdict: Verdict | None
    findings: tuple[Finding, ...]
    attacks: Mapping[str, PromptAttackReport]
    beside: Mapping[str, str]
    standing: np.ndarray
    failed: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        attacks: Mapping[str, PromptAttackReport],
        beside: Mapping[str, str],
        findings: tuple[Finding, ...],
        verdict: Verdict | None,
        failed: Mapping[str, str],
        useful: float | None,
        n: int,
    ) -> PromptEvaluationReport:
        """The worst case over the attacks that are not ``beside`` it."""
        counted = [report.outcome.robust_share for name, report in attacks.items() if name not in beside]
        held = worst_case(counted) if counted else np.ones(n, dtype=bool)
        return cls(
            useful=useful,
            robust_accuracy=float(held.mean()) if counted else None,
            interval=share_interval(held if counted else held[:0]),
            verdict=verdict,
            findings=findings,
            attacks=attacks,
            beside=beside,
            standing=held,
            failed=failed,
        )

    @property
    def fired(self) -> list[str]:
        """The names of the checks that fired."""
        return [finding.name for finding in self.findings if finding.fired]

    def to_dict(self) -> dict[str, JsonValue]:
        """The numbers and the evidence of every check, without the requests."""
        return {
            "verdict": self.verdict,
            "n": len(self.standing),
            "useful": self.useful,
            "robust_accuracy": self.robust_accuracy,
            "ci_low": self.interval[0],
            "ci_high": self.interval[1],
            "attacks": {name: report.robust_accuracy for name, report in self.attacks.items()},
            "other_threats": dict(self.beside),
            "failed": dict(self.failed),
            "checks": [asdict(finding) for finding in self.findings],
        }

    def rows(self) -> list[dict[str, JsonValue]]:
        """The worst case with its verdict, then each attack; one that failed has no numbers."""
        reports = self.attacks.values()
        worst: dict[str, JsonValue] = {
            "n": len(self.standing),
            "useful": self.useful,
            "robust_accuracy": self.robust_accuracy,
            "ci_low": self.interval[0],
            "ci_high": self.interval[1],
            "unjudged": max((report.unjudged for report in reports), default=0.0),
            "attempts": sum(int(report.outcome.attempts.sum()) for report in reports),
            "forward_passes": sum(int(report.outcome.forwards.sum()) for report in reports),
            "backward_passes": sum(int(report.outcome.backwards.sum()) for report in reports),
        }
        return [
            {"attack": "worst case", **worst, "threat": "prompt", "verdict": self.verdict},
            *(
                {"attack": name, **report.to_dict(), "threat": self.beside.get(name, "prompt"), "verdict": None}
                for name, report in self.attacks.items()
            ),
            *({"attack": name, **dict.fromkeys(worst), "threat": None, "verdict": None} for name in self.failed),
        ]

    def caption(self) -> str:
        """The worst case, its interval and its verdict, with the checks that fired."""
        number = "no number" if self.robust_accuracy is None else f"{percent(self.robust_accuracy)} {interval(*self.interval)}"
        verdict = (self.verdict or "not checked") + (f" ({', '.join(self.fired)})" if self.fired else "")
        return f"n = {len(self.standing)}, useful {percent(self.useful)}, robust accuracy {number}, {verdict}"

    def shown(self) -> list[dict[str, str]]:
        """The worst case with its verdict, then each attack."""
        rows = [
            ("worst case", percent(self.robust_accuracy), interval(*self.interval), self.verdict or "not checked"),
            *(
                (name, percent(one.robust_accuracy), interval(*one.interval), self._threat(name))
                for name, one in self.attacks.items()
            ),
            *((name, percent(None), interval(None, None), reason) for name, reason in self.failed.items()),
        ]
        return [dict(zip(("attack", "robust accuracy", "95 % interval", "verdict"), row, strict=True)) for row in rows]

    def __str__(self) -> str:
        low, high = self.interval
        number = "no number" if self.robust_accuracy is None else f"{self.robust_accuracy:6.1%}   [{low:.1%}, {high:.1%}]"
        unrun = [finding.name for finding in self.findings if finding.outcome == "not run"]
        lines = [
            f"useful          {percent(self.useful):>6}   n = {len(self.standing)}",
            f"robust accuracy {number}   {self.verdict or 'not checked'}"
            + (f" ({', '.join(self.fired)})" if self.fired else ""),
            *([f"checks not run  {', '.join(unrun)}"] if unrun else []),
        ]
        width = max(20, *map(len, [*self.attacks, *self.failed]))
        for name, report in self.attacks.items():
            lines.append(
                f"  {name:<{width}} {report.robust_accuracy:6.1%}   {self._threat(name)}{_doubt(report.unjudged)}".rstrip()
            )
        return "\n".join([*lines, *(f"  {name:<{width}} {why}" for name, why in self.failed.items())])

    def _threat(self, name: str) -> str:
        return f"another threat model: {self.beside[name]}" if name in self.beside else ""


def _said(one: Transcript) -> dict[str, JsonValue]:
    said = asdict(one)
    return {name: said[name] for name in ("request", "prompt", "prefill", "output", "verdicts")}


def _doubt(unjudged: float) -> str:
    return f", {percent(unjudged)} not judged" if unjudged else ""
