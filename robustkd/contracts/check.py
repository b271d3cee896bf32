"""The check contract: evidence on whether an evaluation can be believed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal

from typing_extensions import TypeVar

from robustkd.contracts.attack import AttackKind, BaseAttack, Batch, LossFamily
from robustkd.contracts.data import Modality
from robustkd.contracts.errors import RobustkdError, lacks_memory
from robustkd.contracts.evidence import Evidence, shares, with_shares
from robustkd.contracts.json_value import JsonValue
from robustkd.contracts.plugin import Plugin
from robustkd.contracts.prompts import Judge
from robustkd.contracts.region import Placing
from robustkd.contracts.target import BaseTarget, Target
from robustkd.contracts.threat import ThreatModel

if TYPE_CHECKING:
    import numpy as np

Severity = Literal["severe", "warning", "info"]
"""What a check that fires makes of the verdict: `not credible`, `suspect`, or nothing."""
Level = Literal["standard", "thorough"]
"""How many checks are run: `thorough` adds those that cost thousands of passes a sample."""
Verdict = Literal["credible", "suspect", "not credible"]
"""Whether a robust accuracy can be believed; it does not say that the accuracy is high."""
Doubt = Literal["number", "use"]
State = Literal["fired", "quiet", "does not apply", "not run"]


@dataclass(frozen=True)
class Trace:
    """How far a search had come, on average over the samples that a check followed it on.

    Attributes:
        attack: its name in the campaign.
        n: how many samples.
        points: how many points it had tried, rising.
        best: after so many, the highest value so far of ``of``.
        of: what is followed, in words.
        samples: the positions of these samples in their data set, where each was followed by itself; else empty.
        paths: of each of them what ``best`` is of all.
    """

    attack: str
    n: int
    points: list[int]
    best: list[float]
    of: str
    samples: list[int] = field(default_factory=list)
    paths: list[list[float]] = field(default_factory=list)

    def of_sample(self, index: int) -> list[float]:
        """How far the search had come on one sample, after each of ``points``; empty where it was not followed there."""
        return next((path for sample, path in zip(self.samples, self.paths, strict=False) if sample == index), [])


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        fired: whether the symptom is there.
        evidence: the values behind it by name, each with its unit in its type: see ``Share``.
        fix: what to do when it fired.
        applicable: False when the campaign lacks what the check needs; ``evidence["reason"]`` says what.
        remedies: attacks that may do better, as in a campaign file (``{"kind": "square"}``). The platform runs them on the
            samples that still stand, and shows the number that they leave beside the campaign's own.
        forward_passes, backward_passes: what the check cost, over all samples; counted by the platform.
        doubts: see ``Check``.
        ran: False when the check could not be run, on a target that has no gradient or for want of memory, say;
            ``evidence["reason"]`` says why, and ``evidence["again"]`` whether the next run of a campaign is to try again.
        shares: JSON pointers to the shares in ``evidence``, so that they are still shares when read from JSON.
        decisive: see ``Check``.
        trace: of a check that follows a search, how that went.
    """

    name: str
    severity: Severity
    fired: bool
    evidence: Mapping[str, Evidence] = field(default_factory=dict)
    fix: str = ""
    applicable: bool = True
    remedies: list[dict[str, JsonValue]] = field(default_factory=list)
    forward_passes: int = 0
    backward_passes: int = 0
    doubts: Doubt = "number"
    ran: bool = True
    shares: list[str] = field(default_factory=list)
    decisive: bool = False
    trace: Trace | None = None

    def __post_init__(self) -> None:
        if isinstance(self.trace, Mapping):  # as JSON has it
            object.__setattr__(self, "trace", Trace(**self.trace))
        object.__setattr__(self, "evidence", with_shares(self.evidence, self.shares))
        object.__setattr__(self, "shares", [pointer for pointer, _ in shares(self.evidence)])

    @property
    def explanation(self) -> str:
        """What the check says of the symptom; empty where it says nothing."""
        return str(self.evidence.get("explanation") or "").strip()

    @property
    def reason(self) -> str:
        """Why the check does not apply, or was not run; empty where it looked."""
        return str(self.evidence.get("reason") or "")

    @property
    def outcome(self) -> State:
        """What became of the check, in a word or two."""
        if not self.ran:
            return "not run"
        return "fired" if self.fired else "quiet" if self.applicable else "does not apply"

    @property
    def again(self) -> bool:
        """Whether the check could not be run for a reason that may have passed by the next run of a campaign."""
        return not self.ran and bool(self.evidence.get("again"))


@dataclass(frozen=True)
class Transcript:
    """The attempt that decided a request: the first that succeeded, else the last.

    Attributes:
        index: of the request in its data set.
        request, prompt, prefill: what is wanted, what was asked, and how the answer was made to begin.
        output: the answer, where it is a text.
        attempts: made so far.
        verdicts: by judge, whether the output gives what the request asks for, None where it cannot be judged; the first judge's
            counts.
        seed: of what was drawn; None where nothing is.
        cut_off: the answer was begun and not finished, since it was as long as it may be.
        system: the request's own message of the system; "" where the target's counts.
        turns: of the conversation before the prompt, what the user said and what the model is said to have answered.
    """

    index: int
    request: str
    prompt: str
    prefill: str
    output: str
    attempts: int
    verdicts: Mapping[str, bool | None]
    seed: int | None = None
    cut_off: bool = False
    system: str = ""
    turns: Sequence[Sequence[str]] = ()


@dataclass(frozen=True)
class AttackEvidence:
    """One finished attack on the target, as checks see it: per-sample arrays in the order of ``CheckContext.batch``.

    Attributes:
        kind, loss_family, gradients, iterative, averages: see ``Traits``.
        standing: (N,) bool, classified rightly before and after; on most draws, of a target that draws random numbers.
        robust_share: (N,) on what share of the draws it is so, of which robust accuracy is the mean; by default ``standing``.
        correct_before: (N,) bool.
        adversarial: (M, *shape) float32, of the first M <= N samples, or None when perturbations were not kept.
        attack: the attack itself, so that a check can run it again on other samples, with other parameters.
        passes: (N,) int64, forward and backward passes that it spent on each sample.
        skipped: (N,) int64, further ones that it left out because each would have repeated one of them; None where there are none.
        transcripts: of an attack on prompts, the attempt that decided each request; else empty.
        unjudged: (N,) bool, neither broken nor standing, because none of its answers could be judged.
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
    attack: BaseAttack | None = None
    passes: np.ndarray | None = None
    transcripts: Sequence[Transcript] = ()
    averages: bool = False
    unjudged: np.ndarray | None = None
    robust_share: np.ndarray | None = None
    skipped: np.ndarray | None = None

    @property
    def covered(self) -> np.ndarray | None:
        """(N,) int64, the passes whose results are known: those made, and those that would have repeated one of them."""
        return self.passes if self.passes is None or self.skipped is None else self.passes + self.skipped

    @property
    def counted(self) -> np.ndarray:
        """(N,) what the robust accuracy is the mean of: ``robust_share``, or ``standing`` where that is not given."""
        return self.standing if self.robust_share is None else self.robust_share


AttackedTarget = TypeVar("AttackedTarget", bound=BaseTarget, default=Target, covariant=True)
AttackedBatch = TypeVar("AttackedBatch", default=Batch, covariant=True)


@dataclass(frozen=True)
class CheckContext(Generic[AttackedTarget, AttackedBatch]):
    """What a check may use: the target, the attacked samples, and what every attack found.

    A check of prompts looks at a ``CheckContext[GenerativeTarget, PromptBatch]``.

    Attributes:
        teachers: of a classifier of a campaign, the finished targets that its defense refers to, by name.
        judges: of requests of a campaign, what judges the answers to them, by name; the first one decides.
    """

    target: AttackedTarget
    batch: AttackedBatch
    threat: ThreatModel
    attacks: Mapping[str, AttackEvidence]
    seed: int
    teachers: Mapping[str, BaseTarget] = field(default_factory=dict)
    judges: Mapping[str, Judge] = field(default_factory=dict)

    @property
    def headline(self) -> list[AttackEvidence]:
        """The finished attacks under the threat model that the verdict is about."""
        return [attack for attack in self.attacks.values() if attack.threat == self.threat]


class Check(Plugin, ABC):
    """One symptom: a rule, its severity, and ``run``, which returns the evidence.

    Attributes:
        modalities: of which evaluations it is a symptom.
        severity: ``severe`` makes the verdict `not credible`, ``warning`` makes it `suspect`, ``info`` changes nothing.
        rule: the rule in one sentence, with its threshold.
        source: where the rule or the threshold comes from.
        thorough: whether it is so costly that only ``checks: thorough`` runs it.
        cost: its passes, in words.
        doubts: what the symptom casts doubt on: that the ``number`` is right, or that a model with such a number is of ``use``.
        needs_norm: whether its rule is about perturbations in a norm; under a threat model that says otherwise how an image changes, it
            does not apply.
        decisive: whether a number is ``credible`` only once this check has looked, and been quiet.
        regions: the threat models with a ``where`` that it means something under, as of attacks (``Traits``); by default none, and
            under those it is not applicable.

    A check whose ``Params`` have ``samples`` looks at no more than so many; ``checks: {samples: N}`` sets it.
    """

    modalities: ClassVar[tuple[Modality, ...]] = ("images",)
    severity: ClassVar[Severity] = "warning"
    rule: ClassVar[str] = ""
    thorough: ClassVar[bool] = False
    cost: ClassVar[str] = "none"
    doubts: ClassVar[Doubt] = "number"
    needs_norm: ClassVar[bool] = False
    decisive: ClassVar[bool] = False
    regions: ClassVar[tuple[Placing, ...]] = ()

    @abstractmethod
    def run(self, context: CheckContext[Any, Any]) -> Finding:
        """Look for the symptom, and return the evidence whether it was found or not."""

    def finding(
        self,
        fired: bool,
        fix: str = "",
        *,
        severity: Severity | None = None,
        remedies: Sequence[Mapping[str, Any]] = (),
        trace: Trace | None = None,
        **evidence: Evidence,
    ) -> Finding:
        """A ``Finding`` of this check; ``severity`` where it is milder than the check's own.

        ``evidence`` are the values behind it: ``Share(0.5)`` is shown as 50 %, 0.5 as 0.5, an int as a count.
        """
        wanted = [dict(item) for item in remedies if fired]
        return self._found(severity or self.severity, fired, evidence, fix=fix, remedies=wanted, trace=trace)

    def not_applicable(self, reason: str) -> Finding:
        """A ``Finding`` that says the campaign lacks what this check needs."""
        return self._found(self.severity, False, {"reason": reason}, applicable=False)

    def not_run(self, error: Exception) -> Finding:
        """A ``Finding`` that says what kept this check from running. It is no symptom: nobody has looked.

        What robustkd says of a target will be the same next time; a want of memory, or an error that nobody foresaw, may not.
        """
        again = lacks_memory(error) or not isinstance(error, RobustkdError)
        told = f"{type(error).__name__}: {error}".strip()
        return self._found(self.severity, False, {"reason": told, "again": again}, ran=False)

    def _found(self, severity: Severity, fired: bool, evidence: Mapping[str, Evidence], **more: Any) -> Finding:
        return Finding(self.name, severity, fired, evidence, doubts=self.doubts, decisive=self.decisive, **more)
