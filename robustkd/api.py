"""The Python interface for notebooks: attack or evaluate any ``nn.Module`` that takes images in [0, 1].

found = robustkd.attack("pgd", model, x, y, norm="linf", eps=8 / 255, steps=20)
report = robustkd.evaluate(model, x, y, attacks=["pgd", {"kind": "pgd", "loss": "margin"}], norm="linf", eps=8 / 255)
doubts = robustkd.audit(model, x, y, norm="linf", eps=8 / 255, level="thorough")
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from robustkd import plugins
from robustkd.contracts import (
    Arrays,
    Attack,
    AttackError,
    Batch,
    CheckContext,
    Finding,
    GenerativeTarget,
    Params,
    Target,
    TargetError,
    ThreatModel,
    UsageError,
)
from robustkd.contracts.check import Level, Verdict
from robustkd.contracts.target import Precision
from robustkd.contracts.threat import Norm
from robustkd.evaluation.checks import check_names, make_check, run_checks, run_remedies
from robustkd.evaluation.images import BATCH_SIZE, Evaluation, evaluate_attack, evidence_of, make_batch, with_clean_logits
from robustkd.evaluation.judging import Outcome
from robustkd.lazy import nn, torch
from robustkd.plugins.nested import PluginSpec
from robustkd.scoring.intervals import wilson
from robustkd.scoring.remedy import Remedy
from robustkd.scoring.verdict import verdict
from robustkd.targets import ClassifierTarget, SplitTarget, frozen, recording_gradients, untouched
from robustkd.targets.failure import failures_told

AttackLike = str | Mapping[str, Any] | Attack
"""``"pgd"``, ``{"kind": "pgd", "steps": 40}``, or an attack of one's own."""

DEFAULT_ATTACKS: tuple[AttackLike, ...] = ("fgsm", "pgd", {"kind": "pgd", "loss": "margin"})

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class AttackReport:
    """One attack on one model, sample by sample.

    Attributes:
        adversarial: (N, *shape) the inputs found, on the CPU.
        outcome: per-sample arrays: predictions before and after, success, distance, passes (see ``Outcome``).
    """

    adversarial: Tensor
    outcome: Outcome

    @property
    def success(self) -> np.ndarray:
        """(N,) bool: was classified rightly, and is not any more."""
        return self.outcome.success

    @property
    def robust_accuracy(self) -> float:
        """Share of all samples classified rightly before and after this attack: an upper bound on robust accuracy."""
        return float(self.outcome.standing.mean())

    @property
    def clean_accuracy(self) -> float:
        """Share of the samples classified rightly before."""
        return float(self.outcome.correct.mean())


@dataclass(frozen=True)
class EvaluationReport:
    """A model under several attacks: the worst case per sample, and whether it can be believed.

    Attributes:
        clean_accuracy, robust_accuracy: shares of all samples; the latter None when no attack gave a number.
        interval: 95 % Wilson interval of ``robust_accuracy``.
        verdict: ``credible``, ``suspect`` or ``not credible``.
        findings: every check with its evidence.
        attacks: each attack's own report, by name.
        standing: (N,) bool, classified rightly and broken by no attack.
        remedy: what stronger attacks leave, where a check named some.
        failed: attacks without a number, and why: what they returned broke the threat model (`invalid`), or the model failed.
    """

    clean_accuracy: float
    robust_accuracy: float | None
    interval: tuple[float, float]
    verdict: Verdict
    findings: tuple[Finding, ...]
    attacks: dict[str, AttackReport]
    standing: np.ndarray
    remedy: Remedy | None = None
    failed: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        low, high = self.interval
        fired = ", ".join(finding.name for finding in self.findings if finding.fired)
        unrun = [finding.name for finding in self.findings if finding.outcome == "not run"]
        number = "no number" if self.robust_accuracy is None else f"{self.robust_accuracy:6.1%}   [{low:.1%}, {high:.1%}]"
        lines = [
            f"clean accuracy  {self.clean_accuracy:6.1%}   n = {len(self.standing)}",
            f"robust accuracy {number}   {self.verdict}" + (f" ({fired})" if fired else ""),
        ]
        if unrun:
            lines.append(f"checks not run  {', '.join(unrun)}")
        if self.remedy:
            steps = ", ".join(f"{name} {left:.1%}" for name, left in self.remedy.steps.items())
            lines.append(f"with remedy     {self.remedy.robust_accuracy:6.1%}   ({steps or 'none could be used'})")
        width = max(20, *map(len, [*self.attacks, *self.failed]))
        lines += [f"  {name:<{width}} {report.robust_accuracy:6.1%}" for name, report in self.attacks.items()]
        return "\n".join([*lines, *(f"  {name:<{width}} {why}" for name, why in self.failed.items())])


@recording_gradients()
def attack(
    name: str | Attack,
    model: nn.Module | Target,
    x: Tensor | np.ndarray,
    y: Tensor | np.ndarray,
    *,
    norm: Norm = "linf",
    eps: float | Tensor = 8 / 255,
    goals: Tensor | None = None,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    precision: Precision = "full",
    models: Mapping[str, nn.Module | Target] | None = None,
    fit_data: tuple[Any, Any] | None = None,
    **params: Any,
) -> AttackReport:
    """Attack ``model`` on the samples (x, y).

    Args:
        name: an attack plug-in, such as ``pgd``, ``cw-l2`` or ``torchattacks:PGD`` (``robustkd list attacks``), or an attack of
            one's own, with its parameters.
        model: (N, C, H, W) in [0, 1] -> (N, K) logits. It is used where it is, in evaluation mode, and left as found.
        x: (N, C, H, W) images in [0, 1].
        y: (N,) integer labels.
        norm, eps: the budget, in pixel units; eps may be (N,), one for each sample. A minimum-norm attack is judged against it.
        goals: (N,) classes to reach, for a targeted attack.
        seed: seeds each sample's own random stream.
        batch_size: the most samples that the model is called with at once, by attacks and checks; no result depends on it.
        precision: ``bf16`` takes the gradients of robustkd's own fixed-budget attacks, but not of ``autoattack``, in bfloat16, for
            devices that are faster in it. Every success is looked at again in the model's own precision.
        models: other models, by the names that the attack's parameters give them (``transfer``).
        fit_data: images and labels for an attack that learns (``universal``); not those that are attacked.
        params: the attack's own parameters (``robustkd describe NAME``).

    Raises:
        UsageError: unknown attack or parameter, or an attack that cannot be used in this norm.
        DataError, TargetError: the data or the model break their contract.
    """
    if isinstance(name, Attack) and params:
        raise UsageError(f"{', '.join(params)}: an attack of one's own has its parameters already")
    plugin = _holding(_plugin(name if isinstance(name, Attack) else {"kind": name, **params}), models, x, batch_size)
    target = _target(model, x, batch_size)
    with frozen(target.module):
        each = eps if isinstance(eps, torch.Tensor) and eps.ndim else None
        batch = _batch(target, x, y, goals, batch_size, each)
        largest = float(eps.max()) if isinstance(eps, torch.Tensor) else eps
        asked = ThreatModel(norm, largest, goal="untargeted" if goals is None else "targeted")
        threat = plugin.own_threat or asked
        data = _arrays(fit_data)
        found = evaluate_attack(
            target, plugin, batch, threat, seed=seed, batch_size=batch_size, fit_data=data, precision=precision
        )
    return AttackReport(found.adversarial, found.outcome)


@recording_gradients()
def evaluate(
    model: nn.Module | Target,
    x: Tensor | np.ndarray,
    y: Tensor | np.ndarray,
    *,
    attacks: Sequence[AttackLike] = DEFAULT_ATTACKS,
    norm: Norm = "linf",
    eps: float = 8 / 255,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    precision: Precision = "full",
    models: Mapping[str, nn.Module | Target] | None = None,
    fit_data: tuple[Any, Any] | None = None,
) -> EvaluationReport:
    """Attack ``model`` with every attack, take the worst case per sample, and check whether it can be believed.

    Args:
        model, x, y, norm, eps, seed, batch_size, precision, models, fit_data: as for ``attack``.
        attacks: names, mappings of ``kind`` and parameters, or attacks of one's own. The report calls each by its name and
            the parameters that differ from the defaults, such as ``pgd(steps=1)``, and numbers those that read alike (`` #2``).
    """
    target, batch, threat = _asked(model, x, y, norm, eps, batch_size)
    used = {label: _holding(plugin, models, x, batch_size) for label, plugin in _named(attacks).items()}
    data = _arrays(fit_data)
    with frozen(target.module):
        found = {
            name: evaluate_attack(
                target, plugin, batch, threat, seed=seed, batch_size=batch_size, fit_data=data, precision=precision
            )
            for name, plugin in used.items()
        }
        return _checked(target, batch, threat, used, found, {}, "standard", None, seed, batch_size)


@recording_gradients()
def audit(
    model: nn.Module | Target,
    x: Tensor | np.ndarray,
    y: Tensor | np.ndarray,
    *,
    eps: float = 8 / 255,
    norm: Norm = "linf",
    attack: AttackLike | Sequence[AttackLike] = DEFAULT_ATTACKS,
    level: Level = "standard",
    samples: int | None = None,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
) -> EvaluationReport:
    """Can a robust accuracy of ``model`` under ``attack`` be believed? Runs every check of ``level`` and the remedies that they name.

    Unlike ``evaluate`` it goes on where an attack fails: that it does is part of the answer (``EvaluationReport.failed``).

    Args:
        model, x, y, norm, eps, seed, batch_size: as for ``attack``.
        attack: the attack under examination, or several: names, mappings of ``kind`` and parameters, or attacks of one's own.
        level: ``thorough`` adds the checks that cost thousands of passes a sample.
        samples: how many samples a check looks at, at most; each has a default of its own.
    """
    target, batch, threat = _asked(model, x, y, norm, eps, batch_size)
    used = _named([attack] if isinstance(attack, str | Mapping | Attack) else attack)
    found: dict[str, Evaluation] = {}
    failed: dict[str, str] = {}
    with untouched(target.module):
        for name, plugin in used.items():
            try:
                found[name] = evaluate_attack(target, plugin, batch, threat, seed=seed, batch_size=batch_size)
            except AttackError as error:
                failed[name] = f"invalid: {error}"
            except TargetError as error:
                failed[name] = f"failed: {error}"
        return _checked(target, batch, threat, used, found, failed, level, samples, seed, batch_size)


def _checked(
    target: Target,
    batch: Batch,
    threat: ThreatModel,
    used: Mapping[str, Attack],
    found: Mapping[str, Evaluation],
    failed: dict[str, str],
    level: Level,
    samples: int | None,
    seed: int,
    batch_size: int,
) -> EvaluationReport:
    evidence = {name: evidence_of(name, used[name], threat, r.outcome, r.adversarial.numpy()) for name, r in found.items()}
    context = CheckContext(target, batch, threat, evidence, seed)
    findings = run_checks(context, [make_check(name, samples) for name in check_names(level)])
    remedy = run_remedies(context, findings, batch_size=batch_size)
    assert batch.logits is not None
    correct = (batch.logits.argmax(1) == batch.labels).cpu().numpy()
    standing = np.logical_and.reduce([correct, *(result.outcome.standing for result in found.values())])
    return EvaluationReport(
        clean_accuracy=float(correct.mean()),
        robust_accuracy=float(standing.mean()) if found else None,
        interval=wilson(int(standing.sum()), len(standing) if found else 0),
        verdict=verdict(findings, complete=not failed),
        findings=tuple(findings),
        attacks={name: AttackReport(result.adversarial, result.outcome) for name, result in found.items()},
        standing=standing,
        remedy=remedy,
        failed=failed,
    )


def _asked(
    model: nn.Module | Target, x: Any, y: Any, norm: Norm, eps: float, batch_size: int
) -> tuple[Target, Batch, ThreatModel]:
    target = _target(model, x, batch_size)
    with frozen(target.module):
        return target, _batch(target, x, y, None, batch_size), ThreatModel(norm, eps)


def _named(attacks: Sequence[AttackLike]) -> dict[str, Attack]:
    """The attacks by labels, all different: those that read alike are numbered."""
    used: dict[str, Attack] = {}
    for spec in attacks:
        label = _label(spec)
        numbered = (f"{label} #{number}" for number in itertools.count(2))
        used[next(name for name in (label, *itertools.islice(numbered, len(used))) if name not in used)] = _plugin(spec)
    if not used:
        raise UsageError("no attack was named", fix="pass attacks=['pgd', ...]")
    return used


def _plugin(spec: AttackLike) -> Attack:
    if isinstance(spec, Attack):
        return spec
    made: Attack = plugins.make("attacks", {"kind": spec} if isinstance(spec, str) else spec)
    return made


def _label(spec: AttackLike) -> str:
    """The attack's name, with the parameters that a mapping names or that differ from an object's defaults."""
    if isinstance(spec, str):
        return spec
    if isinstance(spec, Attack):
        return _written(plugins.name_of("attacks", spec), _changed(spec.params))
    return _written(str(spec.get("kind", "")), {key: value for key, value in spec.items() if key != "kind"})


def _written(kind: str, params: Mapping[str, Any]) -> str:
    listed = ", ".join(f"{key}={_value(value)}" for key, value in params.items())
    return f"{kind}({listed})" if listed else kind


def _value(value: Any) -> str:
    if isinstance(value, PluginSpec):
        return _written(value.kind, _changed(value.params))
    return f"[{', '.join(_value(item) for item in value)}]" if isinstance(value, list | tuple) else str(value)


def _changed(params: Any) -> dict[str, Any]:
    """The parameters that differ from their defaults; none of an attack that holds its parameters in some other way."""
    if not isinstance(params, Params):
        return {}
    fields = {name: field for name, field in type(params).model_fields.items() if name in params.model_fields_set}
    values = {name: getattr(params, name) for name in fields}
    return {
        name: values[name] for name, field in fields.items() if values[name] != field.get_default(call_default_factory=True)
    }


def _holding(attack: Attack, models: Mapping[str, nn.Module | Target] | None, x: Any, batch_size: int) -> Attack:
    if not models:
        return attack
    return attack.with_targets({name: _target(model, x, batch_size) for name, model in models.items()})


def _arrays(data: tuple[Any, Any] | None) -> Arrays | None:
    return None if data is None else Arrays(*(torch.as_tensor(part).cpu().numpy() for part in data))


def _target(model: nn.Module | Target, x: Any, batch_size: int) -> Target:
    """The model as a target, which no attack or check calls with more than ``batch_size`` samples."""
    if isinstance(model, GenerativeTarget):  # an attack's helper: it draws or writes, and is asked for more than logits
        return model
    return SplitTarget(model if isinstance(model, Target) else _classifier(model, x), batch_size)


def _classifier(model: nn.Module, x: Any) -> Target:
    if not isinstance(model, nn.Module):
        raise UsageError(f"the model is a {type(model).__name__}", fix="pass a torch.nn.Module or a robustkd Target")
    shape = tuple(x.shape[1:])
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    dtype = next((tensor.dtype for tensor in model.parameters()), torch.float32)
    probe = torch.as_tensor(x[:1]).to(device, dtype)
    classes = _classes(model, probe)
    return ClassifierTarget(model, num_classes=classes, input_shape=shape)


def _classes(model: nn.Module, probe: Tensor) -> int:
    target = ClassifierTarget(model, num_classes=0, input_shape=probe.shape[1:])
    with frozen(target.module), torch.no_grad(), failures_told(probe):
        output = model(probe)
    if not isinstance(output, torch.Tensor) or output.ndim != 2 or len(output) != 1:
        shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise UsageError(f"the model returned {shape} for one image", fix="a classifier returns (N, K) logits")
    return output.shape[1]


def _batch(target: Target, x: Any, y: Any, goals: Tensor | None, batch_size: int, eps: Tensor | None = None) -> Batch:
    device = next((tensor.device for tensor in target.module.parameters()), torch.device("cpu"))
    return with_clean_logits(target, make_batch(x, y, device=device, goals=goals, eps=eps), batch_size)
