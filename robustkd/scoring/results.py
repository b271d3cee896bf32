"""The finished campaign as data: what ``results.json`` holds, and what the report and MLflow are made from."""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, TypeAdapter, ValidationError

from robustkd.contracts import StoreError
from robustkd.contracts.analysis import Table
from robustkd.contracts.check import Finding, Verdict
from robustkd.contracts.data import Modality
from robustkd.contracts.evidence import shares_by_name
from robustkd.contracts.json_value import JsonValue
from robustkd.contracts.threat import Budget, Goal, ThreatModel, stored_budget
from robustkd.scoring.bracket import Bracket
from robustkd.scoring.claims import Claim, claims
from robustkd.scoring.detection import Detection
from robustkd.scoring.paired import Comparison, corrected
from robustkd.scoring.picture import Measured
from robustkd.scoring.remedy import Remedy
from robustkd.scoring.summaries import (
    AttackSummary,
    DataSummary,
    Environment,
    GateSummary,
    JudgeSummary,
    ServedSummary,
    ThreatSummary,
)
from robustkd.scoring.tabular import Tabular, interval, percent
from robustkd.scoring.weakest import GroupAccuracy, Weakest

CellStatus = Literal["done", "failed", "invalid", "blocked", "pending"]

_NUMBERS = ("n", "clean_accuracy", "robust_accuracy", "ci_low", "ci_high")
COLUMNS = ("defense", "seed", "attack", "norm", "eps", *_NUMBERS, "status", "verdict")
"""Of the DataFrame of ``Results``."""


def with_units(finding: Any) -> Any:
    """A stored finding that does not say which of its numbers are shares, with what their names tell of it."""
    if not isinstance(finding, dict) or "shares" in finding:
        return finding
    return finding | {"shares": list(shares_by_name(finding.get("evidence")))}


StoredFinding = Annotated[Finding, BeforeValidator(with_units)]


@dataclass(frozen=True)
class CurvePoint:
    """Robust accuracy at one eps, with its interval."""

    eps: float
    robust_accuracy: float
    ci_low: float
    ci_high: float


@dataclass(frozen=True)
class QueryPoint:
    """Robust accuracy after so many queries on each sample, with its interval."""

    queries: int
    robust_accuracy: float
    ci_low: float
    ci_high: float


CURVE_STEPS = 32
"""How many points a curve has up to its largest eps where every eps is measured (by a minimum-norm attack)."""


@dataclass(frozen=True)
class CellResult:
    """One attack on one trained defense with one seed.

    Accuracies are shares of all n samples; one that was misclassified before the attack counts as not robust, and is
    not counted as a success of the attack. ``attack_success_rate`` is over the samples that were classified rightly.
    ``perturbations`` is the number of samples, from the first on, whose perturbed inputs are in the store.
    ``error`` says why a cell has no numbers; its ``status`` is then not ``done``.

    For prompts, requests that the model could not comply with anyway play the role of misclassified samples, and
    ``clean_accuracy`` is the usefulness: the share of harmless requests that the model complies with, None without any.
    ``unjudged`` is the share of requests of which no answer could be judged: they count neither as robust nor as a success of the
    attack, and the success rate is over the others. It is None for images. ``agreement`` tells of every judge but the deciding
    one on how many of the deciding answers it says the same, as a share.

    ``by_queries`` says of an attack without gradients what stands after 0, 10, 20, 50, 100, .. queries on each sample; it is empty of
    others.

    ``draws`` is on how many draws each sample was judged, if the defense draws random numbers: the accuracies are then the mean share
    of the draws on which a sample is right, and the success rate counts the samples that are wrong on most of them.

    ``detection`` is of a target that rejects inputs: the other numbers are then of classifier and detector together, and a clean sample
    that is rejected counts as misclassified.

    ``conditions`` has a digest of each thing that decides how strong the attack is, or what counts as broken, and that is no parameter of
    it: ``network NAME``, another network that it uses or that its budget is measured by, ``judge's network NAME``, and ``training data``
    where it learns. What of these is made of the attacked defense itself counts as it was made, not by what that defense is.
    """

    cell_id: str
    defense: str
    attack: str
    seed: int
    status: CellStatus
    norm: str
    eps: float
    n: int = 0
    clean_accuracy: float | None = None
    robust_accuracy: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    attack_success_rate: float | None = None
    median_norm: float | None = None
    forward_passes: int = 0
    backward_passes: int = 0
    wall_seconds: float = 0.0
    curve: list[CurvePoint] = field(default_factory=list)
    error: str | None = None
    perturbations: int | None = None
    agreement: dict[str, float] = field(default_factory=dict)
    goal: Goal = "untargeted"
    unjudged: float | None = None
    draws: int = 1
    where: dict[str, JsonValue] | None = None
    by_queries: list[QueryPoint] = field(default_factory=list)
    detection: Detection | None = None
    conditions: dict[str, str] = field(default_factory=dict)

    @property
    def threat_model(self) -> ThreatModel:
        """The threat model that the attack of this cell kept to."""
        return ThreatModel.stored(self.norm, self.eps, self.goal, self.where)

    @property
    def budget(self) -> Budget:
        """What the threat model allows."""
        return stored_budget(self.norm, self.eps, self.where)


@dataclass(frozen=True)
class TrainingSet:
    """The condensed data set that a defense was trained on: its images, what it takes uncompressed, and how long it took to make."""

    images: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class DefenseResult:
    """One trained defense with one seed: the worst case per sample over its attacks, and whether it can be believed.

    ``attacks`` names the attacks behind ``robust_accuracy`` (those under the campaign's threat model); ``other_threats``
    holds the worst case under each other threat model that an attack of the campaign asked for.
    ``verdict`` is None while an attack is missing, ``status`` then says why. ``remedy`` is what stronger attacks leave, where a
    check named some. ``analyses`` holds the tables of the campaign's analyses of it, by their names.
    ``unjudged`` is the share of requests that no attack is known to have broken, and of which one at least left it unknown.
    ``bracket`` has what is certified of it, where an analysis of the campaign proves something.
    ``worst_class`` and ``worst_group`` are of the class, and of the group of classes that the campaign file names, of whose samples the
    fewest stand; None where there are none, and in files of former versions. ``groups`` has each of these groups.
    ``training_set`` is the condensed data set that it was trained on, or is; None of any other.
    ``draws`` is as for ``CellResult``. ``verdict_rules`` is the version of the rules that made the verdict (``scoring.verdict``).
    """

    defense: str
    seed: int
    kind: str
    status: CellStatus
    norm: str
    eps: float
    n: int = 0
    clean_accuracy: float | None = None
    robust_accuracy: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    attacks: list[str] = field(default_factory=list)
    verdict: Verdict | None = None
    checks: list[StoredFinding] = field(default_factory=list)
    curve: list[CurvePoint] = field(default_factory=list)
    other_threats: dict[str, float] = field(default_factory=dict)
    train_seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    target_hash: str | None = None
    error: str | None = None
    remedy: Remedy | None = None
    analyses: dict[str, Table] = field(default_factory=dict)
    unjudged: float | None = None
    draws: int = 1
    verdict_rules: int | None = None
    where: dict[str, JsonValue] | None = None
    bracket: Bracket | None = None
    worst_class: Weakest | None = None
    worst_group: Weakest | None = None
    groups: dict[str, GroupAccuracy] = field(default_factory=dict)
    training_set: TrainingSet | None = None

    @property
    def budget(self) -> Budget:
        """What the threat model allows."""
        return stored_budget(self.norm, self.eps, self.where)


@dataclass(frozen=True)
class Skipped:
    """A pair that was planned out, and why."""

    defense: str
    attack: str
    reason: str


@dataclass(frozen=True, repr=False)
class Results(Tabular):
    """A campaign's numbers. Its DataFrame has a row for each attack on a trained defense, and one for their worst case.

    Attributes:
        campaign: its name.
        threat: the headline threat model.
        comparisons: every two defenses of the same seed, on the test samples that they share.
        attacks: what each attack is, by its name.
        served: what was asked of each served model.
        gates: the bounds that the campaign file sets.
        undefended: the defenses that are none, with which the others are compared (see ``scoring.holds``).
        judges: what decides whether an answer counts, by name, the deciding one first; none of images.
        folder: where they are stored, where that is known; it is no part of the numbers.
    """

    campaign: str
    threat: ThreatSummary
    data: DataSummary
    cells: list[CellResult]
    defenses: list[DefenseResult]
    skipped: list[Skipped] = field(default_factory=list)
    environment: Environment = field(default_factory=Environment)
    comparisons: Annotated[list[Comparison], AfterValidator(corrected)] = field(default_factory=list)
    attacks: dict[str, AttackSummary] = field(default_factory=dict)
    served: list[ServedSummary] = field(default_factory=list)
    gates: list[GateSummary] = field(default_factory=list)
    undefended: list[str] = field(default_factory=list)
    judges: dict[str, JudgeSummary] = field(default_factory=dict)
    folder: Path | None = field(default=None, compare=False)

    @property
    def threat_model(self) -> ThreatModel:
        """The threat model that the verdicts are about."""
        return ThreatModel.stored(self.threat.norm, self.threat.eps, self.threat.goal, self.threat.where)

    @property
    def budget(self) -> Budget:
        """What the headline threat model allows."""
        return self.threat_model.budget

    @property
    def modality(self) -> Modality:
        """The modality of the data: images, text or text-to-image."""
        return self.data.modality

    @property
    def judge(self) -> JudgeSummary | None:
        """The deciding judge; None of images, and in files that do not say."""
        return next(iter(self.judges.values()), None)

    @property
    def n_clean(self) -> int | None:
        """Of how many harmless requests the clean accuracies are shares, possibly none; None where they are of the test samples."""
        return self.data.benign

    @property
    def judged_on_draws(self) -> list[str]:
        """A sentence for each number of draws that samples were judged on, and the defenses that it is about."""
        drawing: dict[int, list[str]] = {}
        for one in self.defenses:
            if one.draws > 1 and one.defense not in drawing.setdefault(one.draws, []):
                drawing[one.draws].append(one.defense)
        return [
            f"{', '.join(names)}: random numbers are drawn, so each sample was judged on {draws} draws; accuracies are expected ones"
            for draws, names in drawing.items()
        ]

    @property
    def claims(self) -> list[Claim]:
        """What the comparisons say of every two defenses, corrected for their number; results.json holds it as well."""
        return claims(self.comparisons)

    @property
    def incomplete(self) -> bool:
        """Whether some cell has no number."""
        statuses = [cell.status for cell in self.cells] + [defense.status for defense in self.defenses]
        return any(status != "done" for status in statuses)

    def to_dict(self) -> dict[str, JsonValue]:
        """The results as results.json holds them: JSON values, without ``folder``; ``draws`` where there are several, ``where``,
        ``by_queries``, ``bracket``, a check's ``trace``, ``detection``, ``served``, ``gates``, ``undefended``, ``judges``, ``conditions``,
        worst classes and groups, and attacks that one of two defenses was spared, where there are any.
        """
        summaries = {"threat": self.threat, "data": self.data, "environment": self.environment}
        told = {name: value for name, value in asdict(self).items() if name != "folder"}
        told |= {name: summary.to_dict() for name, summary in summaries.items()}
        for row in (*told["cells"], *told["defenses"]):
            if row["draws"] == 1:
                del row["draws"]
            _leave_out_empty(row, "where", "by_queries", "bracket", "detection", "worst_class", "worst_group", "groups")
            _leave_out_empty(row, "training_set", "conditions")
        for one in told["defenses"]:
            for check in one["checks"]:
                _leave_out_empty(check, "trace")
                _leave_out_empty(check.get("trace", {}), "samples", "paths")
            for table in one["analyses"].values():
                del table["certificate"]  # of each sample; the store has it
                _leave_out_empty(table, "parts", "standing")
        told["judges"] = {name: judge.to_dict() for name, judge in self.judges.items()}
        _leave_out_empty(told, "served", "gates", "undefended", "judges")
        told["claims"] = [asdict(claim) for claim in self.claims]
        for comparison in (*told["comparisons"], *told["claims"]):
            _leave_out_empty(comparison, "only_on_a", "only_on_b", "spared")
            if comparison["shared"] is None:
                del comparison["shared"]
        return told | {"attacks": {name: attack.to_dict() for name, attack in self.attacks.items()}}

    def rows(self) -> list[dict[str, JsonValue]]:
        """Of each trained defense the worst case, with its verdict, then each attack."""
        attacks: dict[tuple[str, int], list[dict[str, JsonValue]]] = {}
        for cell in self.cells:
            attacks.setdefault((cell.defense, cell.seed), []).append({**vars(cell), "verdict": None})
        found: list[dict[str, JsonValue]] = []
        for one in self.defenses:
            worst = {**vars(one), "attack": "worst case"}
            found += [{name: row[name] for name in COLUMNS} for row in (worst, *attacks.get((one.defense, one.seed), ()))]
        return found

    def caption(self) -> str:
        """The campaign, what its numbers are of, and how many of its cells have none."""
        of = f"{self.campaign}: {self.threat_model.plain}, {self.data.name}, n = {self.data.n}"
        missing = sum(cell.status != "done" for cell in self.cells)
        what = "defense" if len(self.defenses) == 1 else "defenses"
        unfinished = f"; incomplete, {missing} of {len(self.cells)} attacks have no number" if self.incomplete else ""
        return f"{of}, {len(self.defenses)} trained {what}{unfinished}"

    def shown(self) -> list[dict[str, str]]:
        """Of each trained defense the worst case over its attacks, with its verdict."""
        return [
            {
                "defense": one.defense,
                "seed": str(one.seed),
                "clean accuracy": percent(one.clean_accuracy),
                "worst case": percent(one.robust_accuracy),
                "95 % interval": interval(one.ci_low, one.ci_high),
                "verdict": one.verdict or (one.status if one.status != "done" else "not checked"),
            }
            for one in self.defenses
        ]

    def measured(self) -> list[Measured]:
        """The worst case of each trained defense."""
        several = len({one.seed for one in self.defenses}) > 1
        return [
            Measured(
                f"{one.defense}, seed {one.seed}" if several else one.defense,
                one.robust_accuracy,
                one.ci_low,
                one.ci_high,
                one.clean_accuracy,
            )
            for one in self.defenses
        ]

    @classmethod
    def from_dict(cls, raw: Any) -> Results:
        """The inverse of ``to_dict``.

        Raises:
            StoreError: these are no results.
        """
        try:
            return _adapter().validate_python(raw)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise StoreError(
                f"these are no results of robustkd: {where}: {first['msg']}", fix="run the campaign again"
            ) from error


def _leave_out_empty(row: dict[str, Any], *names: str) -> None:
    """Delete the fields that are None or 0, or have no entry."""
    for name in names:
        if row.get(name, True) in (None, [], (), {}, 0):
            del row[name]


@functools.cache
def _adapter() -> TypeAdapter[Results]:
    return TypeAdapter(Results)
