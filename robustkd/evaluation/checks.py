"""Run checks on an evaluated target, and the remedies that they name: what campaigns and ``robustkd.audit`` share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from robustkd import plugins
from robustkd.contracts import (
    Attack,
    BaseTarget,
    Batch,
    Check,
    CheckContext,
    Finding,
    Modality,
    PromptBatch,
    RobustkdError,
    Target,
)
from robustkd.contracts.check import Level
from robustkd.contracts.errors import out_of_memory
from robustkd.contracts.image_changes import ImageChange
from robustkd.contracts.random import seeded
from robustkd.evaluation.images import BATCH_SIZE, evaluate_attack
from robustkd.evaluation.judging import clean_shares
from robustkd.evaluation.suite import (
    AT_FIRST,
    PASSES_OF_A_REMEDY,
    Spec,
    StoppingRule,
    TargetDiagnostics,
    escalation,
    images_of,
    in_norm,
    kinds,
)
from robustkd.lazy import torch
from robustkd.scoring.remedy import Remedy
from robustkd.scoring.worst_case import worst_case
from robustkd.targets import CountedTarget, SplitTarget, untouched
from robustkd.targets.precision import evaluating


def check_names(level: Level, modality: Modality = "images") -> list[str]:
    """The names of a level's checks for evaluations of ``modality``; ``standard`` leaves out the costly ones."""
    checks = {name: plugins.load("checks", name) for name in plugins.names("checks")}
    return [
        name for name, check in checks.items() if modality in check.modalities and (level == "thorough" or not check.thorough)
    ]


def make_check(name: str, samples: int | None = None) -> Check:
    """A check, looking at no more than ``samples`` samples where it has such a parameter."""
    plugin = plugins.load("checks", name)
    given = {"samples": samples} if samples is not None and "samples" in plugin.Params.model_fields else {}
    check: Check = plugins.build("checks", name, plugin.Params(**given))
    return check


_FEWER = (64, 16, 4, 1)
"""How many samples a target is asked about at once in a check, one after the other, after memory ran out."""


@evaluating()
def run_checks(context: CheckContext[BaseTarget, Batch | PromptBatch], checks: Sequence[Check]) -> list[Finding]:
    """Every check's finding, with its passes counted. The target is left as it was found, and torch's generator too.

    A check that raises takes no other one down: its finding says that it was not run, and why.
    """
    findings = []
    for check in checks:
        with seeded(context.seed), untouched(context.target.module):
            findings.append(_finding(context, check))
    return findings


def _finding(context: CheckContext[BaseTarget, Batch | PromptBatch], check: Check) -> Finding:
    """The check's finding; where memory runs out, the target is asked about fewer samples at once."""
    where = context.threat.where
    if where is not None and where.placing not in check.regions:
        what = "compares attacks at one place" if "given" in check.regions else "looks at perturbations of the whole image"
        return check.not_applicable(f"it {what}, and only pixels {where} may change")
    if check.needs_norm and isinstance(context.threat.budget, ImageChange):
        return check.not_applicable(f"it is about perturbations in a norm, and the threat model is {context.threat}")
    if not isinstance(context.target, Target):
        try:
            return check.run(context)
        except Exception as error:  # a plug-in's own, or the target's under examination
            return check.not_run(error)
    for most in (None, *_FEWER):
        counted = CountedTarget(context.target if most is None else SplitTarget(context.target, most))
        try:
            finding = check.run(replace(context, target=counted))
        except Exception as error:  # as above
            finding = check.not_run(error)
            full = out_of_memory(error)
        else:
            full = False
        if not full:
            break
    return replace(finding, forward_passes=counted.forwards, backward_passes=counted.backwards)


@evaluating()
def run_remedies(
    context: CheckContext[BaseTarget, Batch | PromptBatch], findings: Sequence[Finding], *, batch_size: int = BATCH_SIZE
) -> Remedy | None:
    """The attacks that fired findings name, each on the samples that still stand; None when no finding names one.

    Ever stronger ones follow (``suite.escalation``), until an attack by gradients and one without have broken nothing more, with
    nothing broken between them, or ``PASSES_OF_A_REMEDY`` passes are spent for each sample that stood at first. Each is tried on
    ``AT_FIRST`` samples before it is run on all, and not again with more steps where it broke none.

    An attack that the target or the threat model has no use for (``bpda`` without a declared stage) is noted and left out.
    """
    called_for = [in_norm(spec, context.threat) for finding in findings if finding.fired for spec in finding.remedies]
    named = {str(spec): spec for spec in called_for}
    # Attacks that follow a gradient first: they cost less, and leave less to random search.
    specs: list[Spec] = sorted(named.values(), key=lambda spec: not plugins.load("attacks", str(spec["kind"])).gradients)
    batch, target = context.batch, context.target
    if not specs or not isinstance(batch, Batch) or not isinstance(target, Target):
        return None
    before = worst_case([clean_shares(batch), *(attack.counted for attack in context.headline)])
    state = _Remedies(before.copy())
    counted = CountedTarget(target)
    stopping_rule = StoppingRule()
    most, stopped = PASSES_OF_A_REMEDY * np.count_nonzero(before), ""
    for spec in _and_stronger(specs, counted, batch, state, context):
        if not state.standing.any() or stopping_rule.reached:
            break
        if counted.forwards + counted.backwards >= most:
            stopped = f"{PASSES_OF_A_REMEDY} passes a sample are spent"
            break
        try:
            attack: Attack = plugins.make("attacks", spec)
            after = _after(attack, counted, batch, state.standing, context, batch_size, tried=spec not in specs)
        except RobustkdError as error:
            state.skipped[str(spec["kind"])] = str(error).splitlines()[0]
            continue
        broke = bool(after.sum() < state.standing.sum())
        if broke or spec not in specs:  # those that findings name are short, and often alike
            stopping_rule.note(attack.traits.gradients, broke=broke)
            if not broke:
                state.in_vain.add(kinds(spec))
        state.climbed |= attack.traits.gradients
        state.misled |= broke and state.climbed and not attack.traits.gradients
        state.standing = after
        state.used.append((spec, after))
    return Remedy.of(state.used, state.skipped, before, counted.forwards, counted.backwards, stopped)


@dataclass
class _Remedies:
    """How far the remedies are.

    Attributes:
        standing: (N,) what stands.
        used: the attacks, and what stood after each.
        skipped: those that could not be used, and why.
        in_vain: the kinds of stronger attacks that have broken nothing: more steps of the same are not tried.
        climbed: whether one has followed the target's gradient.
        misled: whether one without gradients has broken a sample after that.
    """

    standing: np.ndarray
    used: list[tuple[Spec, np.ndarray]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    in_vain: set[tuple[str, ...]] = field(default_factory=set)
    climbed: bool = False
    misled: bool = False


def _after(
    attack: Attack,
    target: Target,
    batch: Batch,
    standing: np.ndarray,
    context: CheckContext[BaseTarget, Any],
    batch_size: int,
    *,
    tried: bool,
) -> np.ndarray:
    """What an attack leaves of ``standing``. One that is ``tried`` is run on a few samples first, and on all where it breaks one."""
    # What a target draws depends on the batch, and must be what it drew when it was judged before.
    rows = np.flatnonzero(standing) if batch.draws is None else np.arange(len(standing))
    # What learns would have to learn twice.
    first = AT_FIRST if tried and batch.draws is None and not attack.traits.learns else len(rows)
    fit_data, after = images_of(batch.select(torch.as_tensor(rows, device=batch.inputs.device))), standing.copy()
    for some in (rows[:first], rows[first:]):
        if not len(some):
            break
        part = batch.select(torch.as_tensor(some, device=batch.inputs.device))
        with seeded(context.seed), untouched(target.module):
            found = evaluate_attack(
                target, attack, part, context.threat, seed=context.seed, batch_size=batch_size, fit_data=fit_data, kept=0
            )
        after[some] = worst_case([standing[some], found.outcome.robust_share])
        if not after.sum() < standing.sum():
            break
    return after


def _and_stronger(
    specs: Sequence[Spec], target: Target, batch: Batch, state: _Remedies, context: CheckContext[BaseTarget, Any]
) -> Iterator[Spec]:
    """The named attacks, then those of the escalation that are not among them."""
    yield from specs
    rows = torch.as_tensor(np.flatnonzero(state.standing), device=batch.inputs.device)
    with seeded(context.seed), untouched(target.module):
        diagnostics = TargetDiagnostics.of(target, batch.select(rows), context.threat, context.seed)
    diagnostics = replace(diagnostics, misleads=state.misled)
    yield from (
        spec for spec in escalation(diagnostics, context.threat) if spec not in specs and kinds(spec) not in state.in_vain
    )
