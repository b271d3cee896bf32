"""The Python interface for notebooks: attack or evaluate any ``nn.Module`` that takes images in [0, 1], or any model that answers.

found = robustkd.attack("pgd", model, x, y, norm="linf", eps=8 / 255, steps=20)
found = robustkd.attack("gcg", (model, tokenizer), ["Tell me .."], judges="refusal-match", steps=50)
report = robustkd.evaluate(model, x, y, attacks=["pgd", {"kind": "pgd", "loss": "margin"}], norm="linf", eps=8 / 255)
report = robustkd.audit(model, x, y, norm="linf", eps=8 / 255, level="thorough")
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, cast, get_args, overload

import numpy as np

from robustkd.contracts import (
    Arrays,
    Attack,
    AttackError,
    BaseTarget,
    Batch,
    Budget,
    Check,
    CheckContext,
    DataError,
    GenerativeTarget,
    Level,
    Norm,
    PixelBudget,
    Precision,
    Prompts,
    Target,
    TargetError,
    ThreatModel,
    UsageError,
)
from robustkd.contracts.random import seeded
from robustkd.contracts.region import Patch, Region, region_of
from robustkd.contracts.threat import default_eps, norm_named, number_written, require_plausible
from robustkd.data.multi_label import Label, classes_of
from robustkd.data.samples import array_of, arrays_of, class_names
from robustkd.evaluation.attack_specs import (
    DEFAULT_ATTACKS,
    IN_A_CAMPAIGN,
    AttackLike,
    attack_of,
    labelled,
    several,
    with_params,
)
from robustkd.evaluation.checks import check_names, make_check, run_checks, run_remedies
from robustkd.evaluation.draws import seeded_target
from robustkd.evaluation.images import (
    BATCH_SIZE,
    Evaluation,
    as_tensor,
    evaluate_attack,
    evidence_of,
    make_batch,
    require_unit_pixels,
    with_clean_logits,
)
from robustkd.evaluation.judging import ImageOutcome, clean_shares
from robustkd.evaluation.prompt_reports import PromptAttackReport, PromptEvaluationReport
from robustkd.evaluation.reports import TURN, AttackReport, EvaluationReport
from robustkd.evaluation.requests import Judges, are_requests
from robustkd.evaluation.saved import Attacked
from robustkd.lazy import nn, torch
from robustkd.normalisation.constants import Constants
from robustkd.normalisation.unit import Unit
from robustkd.prompt_api import Asked, attack_requests, evaluate_requests
from robustkd.scoring.intervals import share_interval
from robustkd.scoring.verdict import verdict
from robustkd.scoring.worst_case import worst_case
from robustkd.targets import ClassifierTarget, SplitTarget, frozen, untouched
from robustkd.targets.features import with_perceptual_features_of
from robustkd.targets.logits import as_logits
from robustkd.targets.output_names import require_known_outputs
from robustkd.targets.outputs import Classes
from robustkd.targets.precision import evaluating
from robustkd.targets.unit import UnitTarget

Normalisation = str | Sequence[Sequence[float]] | Mapping[str, Sequence[float]]
"""``"imagenet"``, ``((.5, .5, .5), (.2, .2, .2))`` or ``{"mean": .., "std": ..}``."""
Success = Literal["any"] | Mapping[str, int]
"""``"any"`` or ``{"label": 3}``: which of several labels is to be flipped."""

if TYPE_CHECKING:
    from torch import Tensor


Arguments = ParamSpec("Arguments")
Report = TypeVar("Report")


def _one_at_a_time(call: Callable[Arguments, Report]) -> Callable[Arguments, Report]:
    """``call`` with gradients on, in full precision, and with global random numbers from its ``seed``; the caller's settings are put
    back, and so are the filters of warnings, to which libraries add their own when they are imported.

    The networks' modes and these settings are shared by all threads, so calls that overlap wait for one another.
    """

    @functools.wraps(call)
    def alone(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Report:
        seed = kwargs.get("seed", 0)
        if not isinstance(seed, int | np.integer) or not -(2**63) <= seed < 2**63:
            raise UsageError(f"seed is {seed!r}", fix="give an integer of at most 63 bits")
        with TURN, warnings.catch_warnings(), evaluating(), seeded(int(seed)):
            return call(*args, **kwargs)

    return alone


@overload
def attack(
    attack: AttackLike,
    /,
    model: Any,
    x: str | Sequence[str] | Sequence[Mapping[str, Any]] | Prompts,
    y: Sequence[str] | None = ...,
    *,
    seed: int = ...,
    batch_size: int = ...,
    models: Mapping[str, Any] | None = ...,
    tokenizer: Any = ...,
    attempts: int | None = ...,
    judges: Judges = ...,
    benign: Any = ...,
    answers: str | Path | None = ...,
    params: Mapping[str, Any] | None = ...,
    **more: Any,
) -> PromptAttackReport: ...


@overload
def attack(
    attack: AttackLike,
    /,
    model: nn.Module | Target,
    x: Any,
    y: Any = ...,
    *,
    norm: Norm = ...,
    eps: float | Tensor | None = ...,
    where: Region | Mapping[str, Any] | None = ...,
    budget: Budget | None = ...,
    goals: Tensor | np.ndarray | Sequence[int] | None = ...,
    seed: int = ...,
    batch_size: int = ...,
    precision: Precision = ...,
    models: Mapping[str, nn.Module | BaseTarget] | None = ...,
    fit_data: Any = ...,
    normalise: Normalisation | None = ...,
    classes: Sequence[int] | None = ...,
    restrict: bool | None = ...,
    success: Success | None = ...,
    bounds: tuple[Any, Any] | None = ...,
    params: Mapping[str, Any] | None = ...,
    **more: Any,
) -> AttackReport: ...


@_one_at_a_time
def attack(
    attack: AttackLike,
    /,
    model: Any,
    x: Any,
    y: Any = None,
    *,
    norm: Norm = "linf",
    eps: float | Tensor | None = None,
    where: Region | Mapping[str, Any] | None = None,
    budget: Budget | None = None,
    goals: Tensor | np.ndarray | Sequence[int] | None = None,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    precision: Precision = "full",
    models: Mapping[str, nn.Module | BaseTarget] | None = None,
    fit_data: Any = None,
    normalise: Normalisation | None = None,
    classes: Sequence[int] | None = None,
    restrict: bool | None = None,
    success: Success | None = None,
    bounds: tuple[Any, Any] | None = None,
    tokenizer: Any = None,
    attempts: int | None = None,
    judges: Judges = None,
    benign: Any = None,
    answers: str | Path | None = None,
    params: Mapping[str, Any] | None = None,
    **more: Any,
) -> AttackReport | PromptAttackReport:
    """Attack ``model`` on the samples (x, y), or on the requests x.

    Args:
        attack: an attack plug-in, such as ``pgd``, ``cw-l2`` or ``torchattacks:PGD`` (``robustkd list attacks``), a mapping of its
            ``kind`` and its parameters, or an attack of one's own, with its parameters.
        model: (N, C, H, W) in [0, 1] -> (N, K) logits, or what they are made of: probabilities, one logit of two classes, or a tuple, a
            mapping or an object that holds them (the log says what was taken). It is used where it is, in evaluation mode, and left as
            found. Where requests are attacked, a causal language model of transformers with ``tokenizer`` or as (model, tokenizer), a
            folder, or a mapping, a defense's ``kind`` and parameters: ``{"kind": "chat-endpoint", "base_url": .., "model": ..}``.
        x: (N, C, H, W) images in [0, 1], or (N, *shape) inputs of any kind within ``bounds``: a tensor, an array or a list; or without
            ``y`` a ``DataLoader`` or data set of torch or Hugging Face, which gives images (in [0, 1], or bytes) and labels. Or N requests:
            texts, or mappings or a data frame with ``prompt`` and other columns of such data (``target``, ``system``, ``prefill`` ..).
        y: (N,) integer labels; with ``success`` (N, L), 0 or 1, or the classes (N,) that a data set with a ``success`` has of them. Of
            requests, N beginnings of answers that comply, which searches aim at; "Sure, here is" by default.
        norm, eps: the budget, in pixel units or those of ``bounds``; eps may be (N,), one for each sample; 8/255 by default, and in a
            patch the whole range of pixels. A minimum-norm attack is judged against it.
        where: the only pixels that may change: ``{"patch": 5, "place": "worst"}`` (or ``"random"``, or ``(top, left)``),
            ``{"channels": [0]}`` or ``{"mask": array or file}``, or a ``robustkd.contracts.region.Region``.
        budget: a budget that says how an image changes, in the place of norm, eps and where, for attacks of that space:
            ``SpatialBudget(rotation=30, translation=0.1)``, ``FlowBudget(1.0)``, ``ColourBudget(0.06)`` or ``PerceptualBudget(0.5)`` of
            ``robustkd.contracts``; the last by the attacked network's own features, or those of one of ``models``.
        goals: (N,) integers, the classes to reach, for a targeted attack; none is the sample's label.
        seed: seeds each sample's own random stream.
        batch_size: the most samples that the model is called with at once, by attacks and checks; no result depends on it,
            except that a model that draws random numbers draws others.
        precision: ``bf16`` takes the gradients of robustkd's own fixed-budget attacks, but not of ``autoattack``, in bfloat16, for
            devices that are faster in it. Every success is looked at again in the model's own precision.
        models: other models, by the names that the attack's parameters (``transfer``, ``pair``), a judge's, a guard's or the budget give
            them; each may be anything that ``model`` may be.
        fit_data: for an attack that learns, images and labels (``universal``) or requests, as x (``universal-gcg``); not those that
            are attacked.
        normalise: what the model wants done with the pixels first: the name of the usual constants (``imagenet``, ``cifar10`` ..) or
            a pair of mean and std, with a number for each channel. eps stays a distance between pixels. It is done before each network
            of ``models`` as well, not before a target, and does not go with ``bounds``.
        classes: the model's index of each class of the data, where the model has others or has them in another order.
        restrict: goes with ``classes``: True where these outputs alone compete, False where any other one is a wrong answer.
        success: of a model with an output for each of L labels that may hold together, what the attacker is after: ``{"label": 3}``, that
            label 3 is flipped, or ``"any"``, that any is (of ten labels at most). A label holds where its logit is above 0.
        bounds: the lowest and the highest valid input, where that is not [0, 1]: ``(-1, 1)``, ``(0, 255)``, or two lists or tensors that
            broadcast over a sample's shape, such as the ranges of F features. x, eps, the distances and the inputs found are then in this
            unit. An attack's own parameters and what the checks tell are in units of the widest range.
        tokenizer: of a language model of transformers.
        attempts: of requests, how many answers to each may be judged (20 by default).
        judges: of requests, one or several, the first decides: names, mappings of ``kind`` and parameters, or functions ``(requests,
            outputs) -> verdicts``; of language models ``refusal-classifier`` and ``refusal-match`` by default.
        benign: harmless requests, as x: how useful the model is. Without them no verdict is ``credible``.
        answers: a folder where the answers of a served model are kept, so that no call asks for them again.
        params: the attack's own parameters (``robustkd describe NAME``), also those that are called as an argument of this
            function is: ``attack("fmn", .., norm="linf", params={"norm": "l2"})``.
        more: the attack's own parameters by keyword: ``attack("pgd", .., steps=40)``.

    Raises:
        UsageError: unknown attack or parameter, or an attack that cannot be used in this norm.
        DataError, TargetError: the data or the model break their contract.
    """
    asked = Asked(model, tokenizer, x, y, benign, judges, attempts, models, answers, seed, batch_size, fit_data)
    settings = _ImageSettings(norm, precision, eps, where, budget, goals, normalise, classes, restrict, success, bounds)
    if _are_asked(asked, settings):
        return attack_requests(with_params(attack, params or {}, more), asked)
    x, y, names = _samples(x, y)
    view = _View.of(settings, x, names)
    plugin = _with_models(attack_of(with_params(attack, params or {}, more)), models, x, batch_size, view)
    evaluator = _make_evaluator(asked, settings, x, y, view)
    with frozen(evaluator.target.module):
        evaluator = replace(evaluator, threat=plugin.threat_for(evaluator.threat))
        return evaluator.report(plugin, evaluator.evaluate(plugin))


@_one_at_a_time
def evaluate(
    model: Any,
    x: Any,
    y: Any = None,
    *,
    attacks: AttackLike | Sequence[AttackLike] | None = None,
    norm: Norm = "linf",
    eps: float | Tensor | None = None,
    where: Region | Mapping[str, Any] | None = None,
    budget: Budget | None = None,
    goals: Tensor | np.ndarray | Sequence[int] | None = None,
    level: Level | Literal["none"] = "standard",
    samples: int | None = None,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    precision: Precision = "full",
    models: Mapping[str, nn.Module | BaseTarget] | None = None,
    fit_data: Any = None,
    normalise: Normalisation | None = None,
    classes: Sequence[int] | None = None,
    restrict: bool | None = None,
    success: Success | None = None,
    bounds: tuple[Any, Any] | None = None,
    tokenizer: Any = None,
    attempts: int | None = None,
    judges: Judges = None,
    benign: Any = None,
    answers: str | Path | None = None,
) -> EvaluationReport | PromptEvaluationReport:
    """Attack ``model`` with every attack, take the worst case per sample, and check whether it can be believed.

    Args:
        model, x, y, norm, where, budget, goals, seed, batch_size, precision, models, fit_data: as for ``attack``.
        normalise, classes, restrict, success, bounds, tokenizer, attempts, judges, benign, answers: as for ``attack``.
        eps: as for ``attack``; of samples that have an eps each there are no checks, so ask for ``level="none"``.
        attacks: one or several: names, mappings of ``kind`` and parameters, or attacks of one's own. The report calls each by its
            name and the parameters that differ from the defaults, such as ``pgd(steps=1)``, and numbers those that read alike
            (`` #2``).
        level: which checks are run. ``thorough`` adds those that cost thousands of passes a sample; ``none`` runs none, and the
            report has no verdict.
        samples: how many samples a check looks at, at most; each has a default of its own.

    Raises:
        UsageError: as for ``attack``.
        AttackError, DataError, TargetError: an attack, the data or the model break their contract.
    """
    asked = Asked(model, tokenizer, x, y, benign, judges, attempts, models, answers, seed, batch_size, fit_data)
    settings = _ImageSettings(norm, precision, eps, where, budget, goals, normalise, classes, restrict, success, bounds)
    if _are_asked(asked, settings):
        return evaluate_requests(asked, attacks, level=level, samples=samples)
    return _evaluate_images(asked, settings, attacks, level, samples, goes_on=False)


@_one_at_a_time
def audit(
    model: Any,
    x: Any,
    y: Any = None,
    *,
    attacks: AttackLike | Sequence[AttackLike] | None = None,
    norm: Norm = "linf",
    eps: float | None = None,
    where: Region | Mapping[str, Any] | None = None,
    budget: Budget | None = None,
    goals: Tensor | np.ndarray | Sequence[int] | None = None,
    level: Level = "standard",
    samples: int | None = None,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    precision: Precision = "full",
    models: Mapping[str, nn.Module | BaseTarget] | None = None,
    fit_data: Any = None,
    normalise: Normalisation | None = None,
    classes: Sequence[int] | None = None,
    restrict: bool | None = None,
    success: Success | None = None,
    bounds: tuple[Any, Any] | None = None,
    tokenizer: Any = None,
    attempts: int | None = None,
    judges: Judges = None,
    benign: Any = None,
    answers: str | Path | None = None,
    attack: AttackLike | Sequence[AttackLike] | None = None,
) -> EvaluationReport | PromptEvaluationReport:
    """Check whether the robust accuracy of ``model`` under ``attacks`` can be believed: run every check of ``level`` and its remedies.

    Unlike ``evaluate`` it goes on where an attack fails; the failure is reported (``EvaluationReport.failed``).

    Args:
        model, x, y, norm, eps, where, budget, goals, seed, batch_size, precision, models, fit_data: as for ``attack``.
        normalise, classes, restrict, success, bounds, tokenizer, attempts, judges, benign, answers: as for ``attack``.
        attacks, level, samples: as for ``evaluate``.
        attack: the former name of ``attacks``; deprecated since 0.2, it goes with 0.3.
    """
    if attack is not None:
        warnings.warn("audit(attack=..) is audit(attacks=..) now; 'attack' goes with 0.3", DeprecationWarning, stacklevel=3)
        attacks = attack
    asked = Asked(model, tokenizer, x, y, benign, judges, attempts, models, answers, seed, batch_size, fit_data)
    settings = _ImageSettings(norm, precision, eps, where, budget, goals, normalise, classes, restrict, success, bounds)
    if _are_asked(asked, settings):
        return evaluate_requests(asked, attacks, level=level, samples=samples, goes_on=True)
    return _evaluate_images(asked, settings, attacks, level, samples, goes_on=True)


@dataclass(frozen=True)
class _ImageSettings:
    """What a call is given where images are attacked, beside what ``Asked`` has of either modality."""

    norm: Norm
    precision: Precision
    eps: float | Tensor | None
    where: Region | Mapping[str, Any] | None
    budget: Budget | None
    goals: Tensor | np.ndarray | Sequence[int] | None
    normalise: Normalisation | None
    classes: Sequence[int] | None
    restrict: bool | None
    success: Success | None
    bounds: tuple[Any, Any] | None


def _evaluate_images(
    asked: Asked,
    settings: _ImageSettings,
    attacks: AttackLike | Sequence[AttackLike] | None,
    level: Level | Literal["none"],
    samples: int | None,
    *,
    goes_on: bool,
) -> EvaluationReport:
    """The counterpart of ``evaluate_requests``; where it ``goes_on``, the model may fail, and its buffers are restored as well."""
    x, y, names = _samples(asked.requests, asked.beginnings)
    view = _View.of(settings, x, names)
    evaluator = _make_evaluator(asked, settings, x, y, view)
    used = {
        name: _with_models(plugin, asked.models, x, evaluator.batch_size, view)
        for name, plugin in labelled(several(DEFAULT_ATTACKS if attacks is None else attacks), evaluator.threat).items()
    }
    checks = _checks(level, samples, settings.eps)
    evaluations: dict[str, Evaluation] = {}
    failed: dict[str, str] = {}
    with untouched(evaluator.target.module) if goes_on else frozen(evaluator.target.module):
        for name, plugin in used.items():
            try:
                evaluations[name] = evaluator.evaluate(plugin)
            except (AttackError, TargetError) as error:
                if not goes_on:
                    raise
                failed[name] = f"{'invalid' if isinstance(error, AttackError) else 'failed'}: {error}"
        return _report(evaluator, used, evaluations, checks, failed)


_OF_IMAGES = ("eps", "where", "budget", "goals", "normalise", "classes", "restrict", "success", "bounds")
_OF_REQUESTS = ("tokenizer", "attempts", "judges", "benign", "answers")


def _are_asked(asked: Asked, settings: _ImageSettings) -> bool:
    """Whether requests are attacked. Settings of the other modality are refused."""
    if are_requests(asked.requests):
        _refuse_settings_of_images(settings)
        return True
    _refuse_settings_of_requests(asked)
    return False


def _refuse_settings_of_images(settings: _ImageSettings) -> None:
    named = [name for name in _OF_IMAGES if getattr(settings, name) is not None]
    named += ["norm"] * (settings.norm != "linf") + ["precision"] * (settings.precision != "full")
    if named:
        raise UsageError(
            f"{', '.join(named)}: of images, and here requests are attacked", fix="leave it out; the budget is attempts=20"
        )


def _refuse_settings_of_requests(asked: Asked) -> None:
    if named := [name for name in _OF_REQUESTS if getattr(asked, name) is not None]:
        raise UsageError(
            f"{', '.join(named)}: of requests, and x are no texts", fix="give a list of texts as x, or leave it out"
        )


@dataclass(frozen=True)
class _View:
    """How a model and its data are to be understood.

    Attributes:
        normalise: what the model wants done with its inputs first.
        classes: the output of each class of the data.
        label: of a model with an output for each label, which one counts (``outputs.OutputFormat``).
        unit: of the inputs; None where they are in [0, 1].
        names: what the data set calls its classes; () where it does not say.
    """

    normalise: Normalisation | None
    classes: Classes | None
    label: Label | None
    unit: Unit | None
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, settings: _ImageSettings, x: Any, names: tuple[str, ...]) -> _View:
        """The settings of the same names, checked.

        Raises:
            UsageError: they are none of what they can be, or do not go together.
        """
        if settings.normalise is not None and settings.bounds is not None:
            raise UsageError(
                "normalise and bounds: the constants are of pixels in [0, 1], and the model is given others",
                fix="give x in [0, 1] and leave out bounds, or normalise inside the model",
            )
        known, success = Classes.given(settings.classes, settings.restrict), settings.success
        label: Label | None = None if success is None else "any"
        if isinstance(success, Mapping) and success.keys() == {"label"} and isinstance(success["label"], int | np.integer):
            label = int(success["label"])
        elif success not in (None, "any"):
            raise UsageError(f"success is {success!r}", fix="'any', where any label flipped is one, or {'label': 3}")
        if known is not None and label is not None:
            raise UsageError("classes and success", fix="give one: labels that hold together are no classes")
        unit = None if settings.bounds is None else Unit.of(settings.bounds, as_tensor("inputs", x).shape[1:])
        return cls(settings.normalise, known, label, unit, names)

    def labels(self, y: Any) -> Any:
        """(N,) classes from what was given as labels.

        Raises:
            DataError: they are no rows of 0 and 1, or classes without an output.
        """
        if self.label is None and self.classes is None and not (hasattr(y, "ndim") and y.ndim == 2):
            return y
        labels = as_tensor("labels", y)
        if self.classes is not None and labels.ndim == 1 and len(labels) and int(labels.max()) >= len(self.classes.index):
            raise DataError(
                f"labels reach up to {int(labels.max())}, and classes has the outputs of {len(self.classes.index)} classes",
                fix="give the model's index of each class of the data",
            )
        if self.label is None:
            if labels.ndim == 2 and labels.shape[1] > 1:
                raise DataError(
                    f"labels of shape {tuple(labels.shape)}: a row for each sample",
                    fix="y.argmax(1) where they are one-hot; where several labels may hold together, say what counts as a success: "
                    "success={'label': 3} or success='any'",
                )
            return y
        return labels if labels.ndim == 1 else classes_of(labels.cpu().numpy(), self.label)


@dataclass(frozen=True)
class _Evaluator:
    """A target with the samples that it is attacked on, and the settings that all attacks share."""

    target: Target
    batch: Batch
    threat: ThreatModel
    seed: int
    batch_size: int
    precision: Precision
    fit_data: Arrays | None
    unit: Unit | None

    def evaluate(self, attack: Attack) -> Evaluation:
        """Run one attack and judge it."""
        with seeded_target(self.target, self.seed):  # for a model that draws random numbers, whatever was run before
            return evaluate_attack(
                self.target,
                attack,
                self.batch,
                self.threat,
                seed=self.seed,
                batch_size=self.batch_size,
                fit_data=self.fit_data,
                precision=self.precision,
            )

    def report(self, attack: Attack, found: Evaluation[ImageOutcome]) -> AttackReport:
        """What an attack found, in the user's unit, with what it takes to look at it again."""
        unit, outcome, threat = self.unit, found.outcome, attack.threat_for(self.threat)
        attacked = Attacked(self.target, attack, threat, self.batch.to("cpu"), self.seed, unit)
        if unit is None or not isinstance(threat.budget, PixelBudget):
            adversarial = found.adversarial if unit is None else unit.restored(found.adversarial)
            return AttackReport(adversarial, outcome, attacked)
        own = attack.minimises(threat) if attack.traits.kind == "minimum-norm" else threat.norm
        outcome = replace(outcome, distance=outcome.distance * unit.length(threat.norm), norm=outcome.norm * unit.length(own))
        return AttackReport(unit.restored(found.adversarial), outcome, attacked)


def _samples(x: Any, y: Any) -> tuple[Any, Any, tuple[str, ...]]:
    """Images and labels as tensors or arrays, also from a loader or a data set alone, and what that calls its classes."""
    if y is not None:
        return (array_of(x) if isinstance(x, list) and len(x) and not isinstance(x[0], str) else x), y, ()
    if isinstance(x, torch.Tensor | np.ndarray):
        raise UsageError("y is missing", fix="give the labels, or a loader or data set that gives images and labels")
    data = arrays_of(x, "x")
    return data.unit(), data.labels, class_names(x)


def _make_evaluator(asked: Asked, settings: _ImageSettings, x: Any, y: Any, view: _View) -> _Evaluator:
    model, batch_size, precision, goals = asked.model, asked.batch_size, settings.precision, settings.goals
    norm, eps, where, budget = settings.norm, settings.eps, settings.where, settings.budget
    if isinstance(model, GenerativeTarget):
        raise UsageError(f"the model is a {model.kind}, and here classifiers of images are attacked", fix=IN_A_CAMPAIGN)
    if not isinstance(batch_size, int) or batch_size < 1:
        raise UsageError(f"batch_size is {batch_size!r}", fix="give a whole number, 1 or more")
    if precision not in get_args(Precision):
        raise UsageError(f"precision is {precision!r}", fix=f"one of: {', '.join(get_args(Precision))}")
    if isinstance(budget, PixelBudget):  # in the user's unit, as these are
        norm, eps, where, budget = budget.norm, budget.eps, budget.where, None
    target, norm = _target(model, x, batch_size, view), _norm(norm)
    unit = target.unit if isinstance(target, UnitTarget) else None
    region = None if where is None else region_of(where)
    eps = _default_eps(norm, region, unit) if eps is None else _budget(eps)
    require_unit_pixels(target)
    if unit is not None:
        x = unit.inputs(as_tensor("inputs", x))
    if unit is not None and budget is None:
        unit.require_plausible(norm, float(eps.max() if isinstance(eps, torch.Tensor) else eps), target.input_shape)
        eps = eps / unit.length(norm)
    each = eps if budget is None and isinstance(eps, torch.Tensor) and eps.ndim else None
    with frozen(target.module):
        batch = _batch(target, x, view.labels(y), goals, batch_size, each)
    if budget is None:
        largest = float(eps if batch.eps is None else batch.eps.max())  # in the precision of the images
        require_plausible(norm, largest, batch.inputs.shape[1:])
        if region is not None:
            region.require_fits(batch.inputs.shape[1:])
        budget = PixelBudget(norm, largest, region)
    if not budget.of_images:
        raise UsageError(f"the budget is {budget}, and here images are attacked", fix=IN_A_CAMPAIGN)
    threat = ThreatModel(budget=budget, goal="untargeted" if goals is None else "targeted")
    if budget.references:
        threat = with_perceptual_features_of(threat, _other_targets(asked.models, x, batch_size, view))
    return _Evaluator(target, batch, threat, asked.seed, batch_size, precision, _arrays(asked.fit_data, unit), unit)


def _default_eps(norm: Norm, region: Region | None, unit: Unit | None) -> float:
    """8/255, or, of a patch, the whole range of pixels."""
    if (eps := default_eps(norm, region)) is not None:
        return eps if unit is None else eps * unit.length(norm)
    if isinstance(region, Patch):
        raise UsageError(f"a patch in {norm} without eps", fix="give eps; in linf its pixels are free by default")
    return 8 / 255


def _budget(eps: float | Tensor) -> float | Tensor:
    """A number, also one that is written ``"8/255"``, or a tensor of budgets, also from a list or an array."""
    if isinstance(eps, str):
        try:
            return number_written(eps)
        except (ValueError, ZeroDivisionError):
            raise UsageError(f"eps is '{eps}'", fix="give a number, such as 0.03 or 8/255") from None
    return eps if isinstance(eps, int | float) else as_tensor("eps", eps)


def _norm(norm: Norm) -> Norm:
    """The norm, also as other libraries write it; ``ThreatModel`` refuses what is none."""
    named = norm_named(norm)
    if named not in get_args(Norm):
        raise UsageError(f"norm is {norm!r}", fix=f"one of: {', '.join(get_args(Norm))}")
    return cast(Norm, named)


def _checks(level: Level | Literal["none"], samples: int | None, eps: float | Tensor | None) -> list[Check]:
    if level == "none":
        return []
    if isinstance(eps, torch.Tensor) and eps.ndim:
        raise UsageError("the checks look at one budget, eps has one for each sample", fix="evaluate(.., level='none')")
    return [make_check(name, samples) for name in check_names(level)]


def _report(
    evaluator: _Evaluator,
    used: Mapping[str, Attack],
    evaluations: Mapping[str, Evaluation],
    checks: Sequence[Check],
    failed: Mapping[str, str] | None = None,
) -> EvaluationReport:
    batch, threat = evaluator.batch, evaluator.threat
    evidence = {
        name: evidence_of(name, used[name], threat, each.outcome, each.adversarial.numpy())
        for name, each in evaluations.items()
    }
    context = CheckContext(evaluator.target, batch, threat, evidence, evaluator.seed)
    findings = run_checks(context, checks)
    clean = clean_shares(batch)
    held = worst_case([clean, *(each.outcome.robust_share for each in evaluations.values())])
    return EvaluationReport(
        clean_accuracy=float(clean.mean()),
        robust_accuracy=float(held.mean()) if evaluations else None,
        interval=share_interval(held if evaluations else held[:0]),
        verdict=verdict(findings, complete=not failed) if checks else None,
        findings=tuple(findings),
        attacks={name: evaluator.report(used[name], each) for name, each in evaluations.items()},
        standing=held >= 0.5,
        remedy=run_remedies(context, findings, batch_size=evaluator.batch_size),
        failed=dict(failed or {}),
        draws=1 if batch.draws is None else batch.draws.shape[1],
    )


def _with_models(
    attack: Attack, models: Mapping[str, nn.Module | BaseTarget] | None, x: Any, batch_size: int, view: _View
) -> Attack:
    return attack.with_targets(_other_targets(models, x, batch_size, view)) if models else attack


def _other_targets(
    models: Mapping[str, nn.Module | BaseTarget] | None, x: Any, batch_size: int, view: _View
) -> dict[str, BaseTarget]:
    if not isinstance(models or {}, Mapping):
        raise UsageError(f"models is a {type(models).__name__}", fix="give models by their names: {'other': network}")
    # An attack's helper may be a model that draws or writes, which is asked for more than logits.
    return {
        name: model if isinstance(model, GenerativeTarget) else _target(model, x, batch_size, _view_of_other(model, view))
        for name, model in (models or {}).items()
    }


def _view_of_other(model: nn.Module | BaseTarget, view: _View) -> _View:
    """That of a further model: a target has its own normalisation."""
    return replace(view, normalise=None) if isinstance(model, Target) else view


def _arrays(data: Any, unit: Unit | None) -> Arrays | None:
    if data is None or isinstance(data, Arrays):
        return data  # these are in [0, 1], whatever the unit is
    if isinstance(data, tuple | list) and len(data) == 2:
        images, labels = (as_tensor("fit_data", part).detach().cpu() for part in data)
        return Arrays((images if unit is None else unit.inputs(images)).numpy(), labels.numpy())
    found = arrays_of(data, "fit_data")
    return found if unit is None else Arrays(unit.inputs(torch.from_numpy(found.unit())).numpy(), found.labels)


def _target(model: nn.Module | BaseTarget, x: Any, batch_size: int, view: _View) -> Target:
    """The model as a target, which no attack or check calls with more than ``batch_size`` samples."""
    if not isinstance(model, Target):
        return _in_unit(SplitTarget(_classifier(model, x, view), batch_size), view.unit)
    if view.unit is not None:
        raise UsageError(f"the model is a {type(model).__name__}, which has bounds of its own", fix="leave out 'bounds'")
    if view.normalise is not None:
        raise UsageError(f"the model is a {type(model).__name__}, which takes pixels", fix="leave out 'normalise'")
    if view.classes is not None or view.label is not None:
        raise UsageError(
            f"the model is a {type(model).__name__}, whose classes are known", fix="leave out 'classes' and 'success'"
        )
    return _in_unit(SplitTarget(model, batch_size), Unit.of(model.bounds, model.input_shape))


def _in_unit(target: Target, unit: Unit | None) -> Target:
    return target if unit is None else UnitTarget(target, unit)


def _classifier(model: nn.Module | BaseTarget, x: Any, view: _View) -> Target:
    if not isinstance(model, nn.Module):
        exported = type(model).__name__ == "ExportedProgram"  # of torch.export, which need not be loaded
        fix = "pass its module, model.module()" if exported else "pass a torch.nn.Module or a robustkd Target"
        raise UsageError(f"the model is of type {type(model).__name__}", fix=fix)
    if view.normalise is not None and isinstance(x, torch.Tensor | np.ndarray) and x.ndim > 1:
        model = Constants.of(view.normalise).before(model, x.shape[1])
    if not isinstance(x, torch.Tensor | np.ndarray):
        raise UsageError(
            f"x is a {type(x).__name__}, and a tensor or an array of images (N, C, H, W) is needed",
            fix=f"torch.stack or np.stack them; of texts, {IN_A_CAMPAIGN}",
        )
    if x.ndim < 2 or not len(x):
        raise UsageError(f"x has the shape {tuple(x.shape)}", fix="give at least one image, as (N, C, H, W)")
    shape = tuple(x.shape[1:])
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    dtype = next((tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()), torch.float32)
    probe = as_tensor("images", x[:1]).to(device, dtype, copy=True)
    target = ClassifierTarget(
        model, num_classes=0, input_shape=shape, bounds=(0.0, 1.0) if view.unit is None else (view.unit.low, view.unit.high)
    )
    with seeded_target(target, 0):
        found = as_logits(target, "the model", samples=probe, classes=view.classes, label=view.label)
    if view.classes is None and view.label is None:
        require_known_outputs(found.num_classes, view.names, known=False, network=model)
    return found


def _batch(
    target: Target,
    x: Any,
    y: Any,
    goals: Tensor | np.ndarray | Sequence[int] | None,
    batch_size: int,
    eps: Tensor | None = None,
) -> Batch:
    device = target.device
    return with_clean_logits(target, make_batch(x, y, device=device, goals=goals, eps=eps), batch_size)
