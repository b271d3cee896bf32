"""The Python interface for models that answer: what ``robustkd.attack``, ``evaluate`` and ``audit`` do with requests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np

from robustkd.contracts import (
    AttackError,
    BaseTarget,
    Check,
    CheckContext,
    Judge,
    Level,
    Modality,
    PromptAttack,
    PromptBatch,
    TargetError,
    ThreatModel,
    UsageError,
)
from robustkd.contracts.random import seed_torch
from robustkd.evaluation.answering_models import answering_target
from robustkd.evaluation.attack_specs import (
    DEFAULT_PROMPT_ATTACKS,
    AttackLike,
    labels,
    prompt_attack_of,
    several,
)
from robustkd.evaluation.checks import check_names, make_check, run_checks
from robustkd.evaluation.images import Evaluation, evidence_of
from robustkd.evaluation.judge_audit import JudgeAudit, audit_judge, read_labelled
from robustkd.evaluation.judging import PromptOutcome
from robustkd.evaluation.prompt_reports import PromptAttackReport, PromptEvaluationReport
from robustkd.evaluation.prompts import evaluate_prompt_attack, prepare
from robustkd.evaluation.requests import Judges, judges_of, requests_of, with_role
from robustkd.scoring.verdict import verdict
from robustkd.targets.frozen import frozen
from robustkd.targets.text_to_image import TextToImageTarget

ATTEMPTS = 20
"""How many answers to each request may be judged, where nobody says it."""


@dataclass(frozen=True)
class Asked:
    """What a call is given where requests are attacked; the models, x, y, the seed and the like also where images are.

    Attributes:
        model, tokenizer: see ``answering_models.answering_target``.
        requests, beginnings: see ``requests.requests_of``.
        benign: harmless requests, in the same forms; None for none.
        judges: see ``requests.judges_of``.
        attempts: how many answers to each request may be judged.
        models: other models by name, for attacks, judges and guards that refer to them.
        answers: a folder where the answers of served models are kept; None for the time of the call.
        batch_size: the most requests that the model is asked at once; None for its own number.
        fit_data: requests that an attack learns from, in the same forms; None for none.
    """

    model: Any
    tokenizer: Any
    requests: Any
    beginnings: Any
    benign: Any
    judges: Judges
    attempts: int | None
    models: Mapping[str, Any] | None
    answers: str | Path | None
    seed: int
    batch_size: int | None
    fit_data: Any


class _Evaluator:
    """A target, and the settings that all attacks share. Nothing is asked before the first attack is run.

    Args:
        others: the models that attacks refer to.
        answers: where the answers of served models are kept.
    """

    def __init__(self, asked: Asked, threat: ThreatModel, others: Mapping[str, BaseTarget], answers: Path) -> None:
        self.threat, self.others, self.seed = threat, others, asked.seed
        self._asked = asked
        self.requests = with_role(requests_of(asked.requests, asked.beginnings), "forbidden")
        self._fit_data = None if asked.fit_data is None else requests_of(asked.fit_data, what="requests to learn from")
        harmless = None if asked.benign is None else requests_of(asked.benign, what="harmless requests")
        self._benign = None if harmless is None else with_role(harmless, "harmless")
        self.target = answering_target(
            asked.model, asked.tokenizer, answers=answers, threat=threat, seed=asked.seed, others=others
        )
        self.modality: Modality = "text-to-image" if isinstance(self.target, TextToImageTarget) else "text"

    @cached_property
    def judges(self) -> Mapping[str, Judge]:
        """By name; the first one decides."""
        return judges_of(self._asked.judges, self.modality, self.others)

    @cached_property
    def batch(self) -> PromptBatch:
        """The requests with what the target answers unattacked."""
        seed_torch(self.seed)
        return prepare(
            self.target,
            self.requests,
            np.arange(len(self.requests)),
            self.judges,
            benign=self._benign,
            device=self.target.device,
            batch_size=self._asked.batch_size,
        )

    def attack(self, spec: AttackLike) -> PromptAttack:
        """The attack, holding the models that it refers to."""
        made = prompt_attack_of(spec, self.modality)
        held = made.with_targets(self.others)
        for name in made.others():
            held.target(name)  # refuses what was not handed over
        return held

    def evaluate(self, attack: PromptAttack) -> Evaluation[PromptOutcome]:
        """Run one attack and judge it."""
        batch, threat = self.batch, attack.threat_for(self.threat)
        seed_torch(self.seed)  # for a model that draws random numbers, whatever was run before
        return evaluate_prompt_attack(
            self.target,
            attack,
            batch,
            threat,
            self.judges,
            seed=self.seed,
            batch_size=self._asked.batch_size,
            fit_data=self._fit_data,
        )

    def report(self, found: Evaluation[PromptOutcome]) -> PromptAttackReport:
        """What an attack found."""
        benign = None if self.batch.benign is None else self.batch.benign.complied
        return PromptAttackReport(found.outcome, tuple(found.transcripts), benign, found.harmless_alarms)


def attack_requests(attack: AttackLike, asked: Asked) -> PromptAttackReport:
    """Run one attack on the requests.

    Raises:
        UsageError: unknown attack, parameter, judge or model, or an attack or a judge for other models.
        AttackError, DataError, TargetError: the attack, the data or the model break their contract.
    """
    with _evaluator(asked) as evaluator:
        plugin = evaluator.attack(attack)
        plugin.require(evaluator.target)  # before anything is asked
        return evaluator.report(evaluator.evaluate(plugin))


def evaluate_requests(
    asked: Asked,
    attacks: AttackLike | Sequence[AttackLike] | None,
    *,
    level: Level | str = "standard",
    samples: int | None = None,
    goes_on: bool = False,
) -> PromptEvaluationReport:
    """Run every attack on the requests, take the worst case, and check whether it can be believed.

    Args:
        attacks: None for ``DEFAULT_PROMPT_ATTACKS``.
        level, samples: see ``robustkd.evaluate``.
        goes_on: whether a failure of an attack is reported, and the others go on.

    Raises:
        UsageError, AttackError, DataError, TargetError: see ``attack_requests``.
    """
    with _evaluator(asked) as evaluator:
        used = {
            name: evaluator.attack(spec)
            for name, spec in labels(several(DEFAULT_PROMPT_ATTACKS if attacks is None else attacks)).items()
        }
        for plugin in () if goes_on else used.values():
            plugin.require(evaluator.target)  # before anything is asked
        checks = _checks(level, samples, evaluator.modality)
        found: dict[str, Evaluation[PromptOutcome]] = {}
        failed: dict[str, str] = {}
        for name, plugin in used.items():
            try:
                found[name] = evaluator.evaluate(plugin)
            except (AttackError, TargetError) as error:
                if not goes_on:
                    raise
                failed[name] = f"{'invalid' if isinstance(error, AttackError) else 'failed'}: {error}"
        evidence = {
            name: evidence_of(name, used[name], used[name].threat_for(evaluator.threat), one.outcome, None, one.transcripts)
            for name, one in found.items()
        }
        context = CheckContext(
            evaluator.target, evaluator.batch, evaluator.threat, evidence, evaluator.seed, judges=evaluator.judges
        )
        findings = tuple(run_checks(context, checks))
        benign = evaluator.batch.benign
        return PromptEvaluationReport.of(
            attacks={name: evaluator.report(one) for name, one in found.items()},
            beside={name: one.threat.space for name, one in evidence.items() if one.threat != evaluator.threat},
            findings=findings,
            verdict=verdict(list(findings), complete=not failed) if checks else None,
            failed=failed,
            useful=None if benign is None else float(benign.complied.mean()),
            n=len(evaluator.batch),
        )


def audit_judges(
    answers: str | Path, judges: Judges = None, *, models: Mapping[str, Any] | None = None, n: int | None = None
) -> list[JudgeAudit]:
    """How well judges agree with people about answers, and how many of their verdicts change with the form of an answer alone.

    Args:
        answers: a file of answers that people have labelled, see ``evaluation.judge_audit.read_labelled``.
        judges: as ``robustkd.attack`` takes them; the usual ones by default.
        models: models by name, for judges that refer to them; each may be anything that ``model`` of ``robustkd.attack`` may be.
        n: how many of the answers, spread evenly; None for all.

    Raises:
        DataError: the file cannot be read, or has another label.
        UsageError: unknown judge, parameter or model.
        TargetError: a model gives no answer.
    """
    labelled, threat = read_labelled(Path(answers)).first(n), ThreatModel.by_prompt(1)
    with tempfile.TemporaryDirectory() as scratch:
        others = _others(models, Path(scratch), threat, 0)
        made = judges_of(judges, "text", others)
        return [audit_judge(name, judge, labelled) for name, judge in made.items()]


def _others(models: Mapping[str, Any] | None, answers: Path, threat: ThreatModel, seed: int) -> dict[str, BaseTarget]:
    """The targets of models by name; one may refer to those before it."""
    others: dict[str, BaseTarget] = {}
    for name, other in (models or {}).items():
        others[name] = (
            other
            if isinstance(other, BaseTarget)
            else answering_target(other, answers=answers, threat=threat, seed=seed, others=others)
        )
    return others


@contextmanager
def _evaluator(asked: Asked) -> Iterator[_Evaluator]:
    """Everything that a call needs; the model is left as found."""
    attempts = ATTEMPTS if asked.attempts is None else asked.attempts
    if not isinstance(attempts, int) or attempts < 1:
        raise UsageError(f"attempts is {attempts!r}", fix="give a whole number, 1 or more")
    threat = ThreatModel.by_prompt(attempts)
    with tempfile.TemporaryDirectory() as scratch:
        answers = Path(asked.answers or scratch)
        others = _others(asked.models, answers, threat, asked.seed)
        evaluator = _Evaluator(asked, threat, others, answers)
        with frozen(evaluator.target.module):
            yield evaluator


def _checks(level: Level | str, samples: int | None, modality: Modality) -> list[Check]:
    if level == "none":
        return []
    if level not in get_args(Level):
        raise UsageError(f"level is {level!r}", fix=f"one of: {', '.join(get_args(Level))}, none")
    return [make_check(name, samples) for name in check_names(cast("Level", level), modality)]
