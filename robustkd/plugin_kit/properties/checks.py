"""What is asked of those that look at finished attacks and trained defenses: checks and analyses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, get_args

import numpy as np

from robustkd import plugins
from robustkd.contracts import (
    BaseTarget,
    CheckContext,
    DataError,
    Finding,
    Table,
    Target,
    TargetError,
    ThreatModel,
    target_references,
)
from robustkd.contracts.check import Severity
from robustkd.contracts.evidence import shares
from robustkd.evaluation.images import evaluate_attack, evidence_of
from robustkd.plugin_kit import fixtures, prompt_fixtures
from robustkd.plugin_kit.subject import NotApplicable, Subject, generators_at, require

_EPS = fixtures.EPS["linf"]
_ATTACKS = ({"kind": "fgsm"}, {"kind": "pgd", "steps": 10}, {"kind": "pgd", "steps": 10, "loss": "margin"})
_METRIC = re.compile(r"[A-Za-z0-9_./ -]+")
QUICK_CHECK = {"samples": 4, "points": 200, "steps": 5, "restarts": 1}


def finds(subject: Subject) -> None:
    """It returns a finding under its own name, with evidence that JSON can hold; a fired one says why and what to do."""
    for context in (_evaluated(subject), _evaluated(subject, attacked=False)):
        finding = _found(subject, context)
        require(isinstance(finding, Finding), f"run returned a {type(finding).__name__}", "return self.finding(..)")
        require(finding.name == subject.name, f"its finding is called '{finding.name}'", "use self.finding(..)")
        require(finding.severity in get_args(Severity), f"severity {finding.severity}", f"one of {get_args(Severity)}")
        try:
            json.dumps(asdict(finding), allow_nan=False)
        except (TypeError, ValueError) as error:
            require(False, f"its evidence cannot be written as JSON: {error}", "plain numbers and texts: float(..), int(..)")
        for pointer, share in shares(finding.evidence):
            require(
                -1 <= share <= 1,
                f"its evidence {pointer} is a share of {share}",
                "Share(0.5) is 50 %; other numbers are plain floats",
            )
        if finding.fired:
            require("explanation" in finding.evidence, "it fired without a word", "finding(.., explanation='..')")
            require(bool(finding.fix), "it fired and names no fix", "finding(True, fix='..')")
        if not finding.applicable:
            require("reason" in finding.evidence, "it does not say why it does not apply", "self.not_applicable('..')")


def same_finding(subject: Subject) -> None:
    """Run twice, it finds the same."""
    found = []
    for _ in range(2):
        with generators_at(0):  # as the platform runs checks
            found.append(_found(subject, _evaluated(subject)))
    require(found[0] == found[1], "two runs differ", "draw from SampleRng(context.seed, ..)")


def leaves_the_model(subject: Subject) -> None:
    """The model is left as it was."""
    context = _evaluated(subject)
    with fixtures.left_alone("it", context.target.module), generators_at(0):
        _found(subject, context)


CHECK = (finds, same_finding, leaves_the_model)


def tabulates(subject: Subject) -> None:
    """It makes a table with a name for each row and column, finite values, and metrics that MLflow takes."""
    table = _table(subject)
    require(isinstance(table, Table), f"run returned a {type(table).__name__}", "return a robustkd.contracts.Table")
    shape = {len(row) for row in table.values}
    require(
        len(table.values) == len(table.rows) and shape <= {len(table.columns)},
        f"{len(table.rows)} rows and {len(table.columns)} columns are named, the values are {len(table.values)} by {shape}",
        "one list for each row, one value for each column",
    )
    values = np.array(table.values, dtype=float)
    require(bool(np.isfinite(values).all()), "a value is not finite", "leave out what cannot be computed")
    told = table.shares or table.standing
    require(not told or bool(((values >= 0) & (values <= 1)).all()), "shares lie outside [0, 1]", "or set shares=False")
    bad = [name for name in table.metrics if not _METRIC.fullmatch(name)]
    require(not bad, f"MLflow takes no metric called {bad[:1]}", "letters, digits, _ . / - and spaces")
    require(bool(table.caption), "the table has no caption", "say what a value is, and of how many samples")


def same_table(subject: Subject) -> None:
    """One seed gives one table."""
    tables = []
    for elsewhere in (1, 2):
        with generators_at(elsewhere):
            tables.append(_table(subject))
    require(tables[0] == tables[1], "two runs with one seed differ", "draw from SampleRng(seed, ..)")


def leaves_the_target(subject: Subject) -> None:
    """The target and the global random generators are left as they were."""
    target = _about(subject)
    with fixtures.left_alone("it", target.module):
        _table(subject, target)


ANALYSIS = (tabulates, same_table, leaves_the_target)


def _found(subject: Subject, context: CheckContext) -> Finding:
    finding: Finding = subject.make(QUICK_CHECK).run(context)
    return finding


def _evaluated(subject: Subject, attacked: bool = True) -> CheckContext[Any, Any]:
    """A finished evaluation of an undefended network (or of a model that is asked), with attacks or with none."""
    if _of_prompts(subject):
        return prompt_fixtures.evaluated(_draws(subject), attacked)
    target = fixtures.classifier()
    batch, threat = fixtures.batch(target), ThreatModel("linf", _EPS)
    evidence = {}
    for spec in _ATTACKS if attacked else ():
        attack = plugins.make("attacks", spec)
        found = evaluate_attack(target, attack, batch, threat)
        name = "-".join(str(value) for value in spec.values())
        evidence[name] = evidence_of(name, attack, threat, found.outcome, found.adversarial.numpy())
    return CheckContext(target, batch, threat, evidence, 0)


def _about(subject: Subject) -> BaseTarget:
    """A target that the analysis can be made of: a single network, an ensemble, one with exits, or one that learnt in tasks."""
    if _of_prompts(subject):
        return prompt_fixtures.Oracle(_draws(subject))
    kinds: tuple[Callable[[], Target], ...] = (fixtures.classifier, fixtures.ensemble, fixtures.adaptive)
    for make in kinds:
        target = make()
        try:
            _table(subject, target)
        except TargetError:
            continue
        return target
    return fixtures.stream()


def _table(subject: Subject, target: BaseTarget | None = None) -> Table:
    target = target or _about(subject)
    if isinstance(target, prompt_fixtures.Oracle):
        if target_references(subject.make(QUICK_CHECK).params):
            raise NotApplicable("it looks with a model of the campaign: try it in one")
        with generators_at(0):  # its modules draw their first weights
            context = prompt_fixtures.evaluated(target.draws)
        try:
            found: Table = subject.make(QUICK_CHECK).run(target, context.batch, context.threat, 0)
        except (DataError, TargetError) as error:
            raise NotApplicable(f"it cannot be made of the suite's requests: {error.message}") from None
        return found
    assert isinstance(target, Target)
    analysis = subject.make(QUICK_CHECK)
    analysis = analysis.with_targets(fixtures.classifiers(target_references(analysis.params)))
    table: Table = analysis.run(target, fixtures.batch(target), ThreatModel("linf", _EPS), 0)
    return table


def _of_prompts(subject: Subject) -> bool:
    return "images" not in plugins.modalities(subject.plugin)


def _draws(subject: Subject) -> bool:
    return "text" not in plugins.modalities(subject.plugin)
