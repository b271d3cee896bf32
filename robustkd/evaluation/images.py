"""Run an attack on a target and judge it: the one path that campaigns, the command line and the Python interface share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic, Protocol, TypeAlias, TypeVar

import numpy as np

from robustkd.contracts import (
    Arrays,
    Attack,
    AttackEvidence,
    AttackResult,
    BaseAttack,
    Batch,
    DataError,
    PerceptualBudget,
    Target,
    TargetError,
    ThreatModel,
    Transcript,
    UsageError,
)
from robustkd.contracts.data import KEPT_BYTES
from robustkd.contracts.image_changes.perceptual import SELF
from robustkd.contracts.random import SampleRng, preserved_rng, seed_torch, seeded
from robustkd.contracts.target import Precision
from robustkd.evaluation.draws import PROBED, drawn_logits, logits_unless_random
from robustkd.evaluation.judging import ImageOutcome, Outcome, judge_with_logits
from robustkd.evaluation.pictures import joined
from robustkd.evaluation.unchanged import alike, require_unchanged, state_of
from robustkd.lazy import torch
from robustkd.scoring.distances import TOLERANCE
from robustkd.targets.failure import model_errors_explained
from robustkd.targets.features import with_perceptual_features
from robustkd.targets.frozen import untouched
from robustkd.targets.layout import channels_last
from robustkd.targets.memory import bytes_for_backward, in_memory, return_freed_memory, with_fewer
from robustkd.targets.precision import evaluating, full_precision
from robustkd.targets.split import SplitTarget

if TYPE_CHECKING:
    from torch import Tensor

BATCH_SIZE = 256
"""How many samples are attacked at once by default, at most. No result depends on it."""
_HOST_BATCH_BYTES, _HOST_GRAPH_BYTES = 1 << 26, 3 << 28
"""What the images of a batch, and what a network keeps of them for its backward pass, take by default at most, where the network shares
the memory with everything else."""
SHARD = 256
"""Samples of a shard: what a caller that keeps shards loses at most, when it is killed. No result depends on it."""
TESTED = 16
"""How many certified samples are attacked all the same: a certificate that is wrong is likely to show on them."""


OutcomeType = TypeVar("OutcomeType", bound=Outcome, covariant=True)
_Found: TypeAlias = "tuple[ImageOutcome, Tensor, Tensor]"
"""What happened to each sample, the inputs that are kept, and their logits."""


@dataclass(frozen=True)
class Evaluation(Generic[OutcomeType]):
    """One attack on one target.

    Attributes:
        outcome: per sample, at ``threat.eps``.
        adversarial: (M, *shape) on the CPU, the inputs found at ``threat.eps`` for the first M <= N samples; all by default.
            For text-to-image targets the generated images; empty for text targets.
        broken_at: (N,) the smallest of all eps tried at which a sample was broken; inf where none did. Of a target that draws
            random numbers (N, R), on each draw.
        transcripts: of an attack on prompts, the attempt that decided each request; else empty.
        clean: (N, *shape) the images that a text-to-image target generates unattacked; else None.
        benign: of a generative model, (M,) bool, which harmless requests it complied with; None where the data have none.
        logits: of a classifier (M, 2, K) float32 on the CPU, its logits of the clean inputs and of ``adversarial``; None of another.
        harmless_alarms: of a local language model with guards, (M,) how far each harmless request is above what they let pass.
    """

    outcome: OutcomeType
    adversarial: Tensor
    broken_at: np.ndarray
    transcripts: tuple[Transcript, ...] = ()
    clean: Tensor | None = None
    benign: np.ndarray | None = None
    logits: Tensor | None = None
    harmless_alarms: np.ndarray | None = None

    @classmethod
    def joined(cls, parts: Sequence[Evaluation[OutcomeType]]) -> Evaluation[OutcomeType]:
        """The evaluations of consecutive samples as one; what is said of harmless requests is the same of all."""
        if len(parts) == 1:
            return parts[0]
        clean = [part.clean for part in parts if part.clean is not None]
        logits = [part.logits for part in parts if part.logits is not None]
        return Evaluation(
            type(parts[0].outcome).joined([part.outcome for part in parts]),
            joined([part.adversarial for part in parts]),
            np.concatenate([part.broken_at for part in parts]),
            tuple(one for part in parts for one in part.transcripts),
            joined(clean) if clean else None,
            parts[0].benign,
            torch.cat(logits) if len(logits) == len(parts) else None,  # a part that an earlier version kept has none
            parts[0].harmless_alarms,
        )


class Shards(Protocol):
    """Where finished parts of an evaluation are kept, so that one that is killed can go on."""

    def read(self, first: int, kind: type[OutcomeType]) -> Evaluation[OutcomeType] | None:
        """The finished part that begins at sample ``first``, with an outcome of this type, or None."""

    def write(self, first: int, found: Evaluation[Outcome], seconds: float) -> None:
        """Keep the part that begins at sample ``first`` and took ``seconds``."""


def evidence_of(
    name: str,
    attack: BaseAttack,
    threat: ThreatModel,
    outcome: Outcome,
    adversarial: np.ndarray | None,
    transcripts: Sequence[Transcript] = (),
) -> AttackEvidence:
    """The finished attack in the form that checks are given."""
    traits = attack.traits
    return AttackEvidence(
        name=name,
        kind=traits.kind,
        loss_family=traits.loss_family,
        gradients=traits.gradients,
        iterative=traits.iterative,
        averages=traits.averages,
        threat=threat,
        correct_before=outcome.eligible,
        standing=outcome.standing,
        robust_share=outcome.robust_share,
        distance=outcome.spent,
        adversarial=adversarial,
        # What it learnt is not kept: none of images, which a check may want to run again.
        attack=None if traits.learns and isinstance(attack, Attack) else attack,
        passes=outcome.passes,
        skipped=outcome.skipped,
        transcripts=transcripts,
        unjudged=outcome.eligible & ~outcome.decided,
    )


NEARLY = 1e-3
"""How far outside [0, 1] pixels may be for rounding to be the likely reason."""


def make_batch(
    images: np.ndarray | Tensor,
    labels: np.ndarray | Tensor,
    *,
    index: np.ndarray | Tensor | None = None,
    device: torch.device | str = "cpu",
    goals: np.ndarray | Tensor | Sequence[int] | None = None,
    eps: Tensor | None = None,
) -> Batch:
    """A batch from arrays or tensors, checked at the door.

    Args:
        images: (N, *shape) in [0, 1].
        labels: (N,) integers.
        index: (N,) positions in the data set; 0..N-1 by default.
        device: where the attack will run.
        goals: (N,) classes to reach, for a targeted threat model; none is the sample's label.
        eps: (N,) a budget for each sample.

    Raises:
        DataError: pixels outside [0, 1] or not finite, or labels, goals or budgets that do not fit.
    """
    inputs, classes = as_tensor("images", images), as_tensor("labels", labels)
    eps = eps if eps is None else _differentiable(eps)
    if inputs.dtype in (torch.float16, torch.bfloat16):
        inputs = inputs.float()  # too coarse to measure a distance in; the network is given images in its own type
    if not inputs.is_floating_point():
        raise DataError(f"images are {inputs.dtype}", fix="convert them to floating point in [0, 1] (divide bytes by 255)")
    if len(inputs) == 0 or classes.shape != inputs.shape[:1] or classes.is_floating_point():
        raise DataError(
            f"{len(inputs)} images but labels of shape {tuple(classes.shape)} ({classes.dtype})", fix="one integer per image"
        )
    wanted = None if goals is None else _goals(as_tensor("goals", goals), classes)
    low, high = float(inputs.min()), float(inputs.max())
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):
        nearly = low >= -NEARLY and high <= 1 + NEARLY
        raise DataError(
            f"pixels reach from {low:.9g} to {high:.9g}, outside [0, 1]",
            fix="clamp them: x.clamp(0, 1)"
            if nearly
            else "give images in [0, 1]; normalise inside the model, or by normalise=",
        )
    if low < 0 or high > 1:  # by rounding, as where a normalisation was taken back
        inputs = inputs.clamp(0, 1)
    position = torch.arange(len(inputs)) if index is None else torch.as_tensor(index)
    if eps is not None:
        eps = eps.to(inputs.dtype)
        if eps.shape != classes.shape or not bool((eps >= 0).all()):
            raise DataError(f"budgets of shape {tuple(eps.shape)} for {len(inputs)} images", fix="one eps >= 0 per image")
    return Batch(inputs, classes.to(torch.int64), position.to(torch.int64), goals=wanted, eps=eps).to(device)


def as_tensor(what: str, values: object) -> Tensor:
    """Numbers as a tensor that takes gradients.

    Raises:
        DataError: they are no numbers, or lists of unequal length.
    """
    if isinstance(values, torch.Tensor):
        return _differentiable(values)
    try:
        array = np.asarray(values)
        # torch refuses what lies backwards in memory.
        return torch.as_tensor(array.copy() if any(stride < 0 for stride in array.strides) else array)
    except (TypeError, ValueError, RuntimeError):
        raise DataError(
            f"{what} are no numbers ({type(values).__name__})", fix="give a tensor or an array of numbers"
        ) from None


def deferred_batch(data: Arrays, *, index: np.ndarray, device: torch.device) -> Batch:
    """A batch like that of ``make_batch``, from data that are checked already; its images are brought to the device where they are used.

    So they are where they would take more than ``KEPT_BYTES`` all together; ``Batch.select`` gives ordinary batches.
    """
    if 4 * len(data) * math.prod(data.sample_shape) <= KEPT_BYTES:
        return make_batch(data.unit(), data.labels, index=index, device=device)
    from robustkd.evaluation.deferred import DeferredImages  # late: it imports torch

    return_freed_memory()
    labels, position = (torch.from_numpy(values.astype(np.int64)).to(device) for values in (data.labels, index))
    return Batch(DeferredImages(data.kept(), device), labels, position)


def usual_batch_size(target: Target, batch: Batch) -> int:
    """How many samples are attacked at once where nobody says it: ``BATCH_SIZE``, on the CPU fewer of large images and networks."""
    if batch.inputs.device.type != "cpu" or not len(batch):
        return BATCH_SIZE
    images = _HOST_BATCH_BYTES // max(1, 4 * math.prod(batch.inputs.shape[1:]))
    if images >= 4 * BATCH_SIZE:  # small ones: not worth a pass
        return BATCH_SIZE
    with untouched(target.module), preserved_rng(batch.inputs.device):
        kept = bytes_for_backward(target, batch.select(torch.zeros(1, dtype=torch.int64)).inputs)
    return max(1, min(BATCH_SIZE, images, _HOST_GRAPH_BYTES // max(1, kept)))


def in_full(images: Tensor) -> Tensor:
    """Images as an ordinary tensor, also those that are deferred."""
    from robustkd.evaluation.deferred import DeferredImages  # late: it imports torch

    return images.decoded() if isinstance(images, DeferredImages) else images


def _goals(goals: Tensor, labels: Tensor) -> Tensor:
    if goals.shape != labels.shape or goals.dtype == torch.bool or goals.is_floating_point() or goals.is_complex():
        raise DataError(
            f"{len(labels)} samples but goals of shape {tuple(goals.shape)} ({goals.dtype})", fix="one class per sample"
        )
    goals = goals.to(labels.device, torch.int64)
    if same := int((goals == labels).sum()):
        raise DataError(
            f"the goals of {same} of {len(labels)} samples are their labels", fix="leave these samples out, or aim elsewhere"
        )
    return goals


def _differentiable(tensor: Tensor) -> Tensor:
    """The tensor itself, or a copy of one that was made inside ``torch.inference_mode``, which takes no gradients."""
    return tensor.clone() if tensor.is_inference() else tensor


def require_unit_pixels(target: Target) -> None:
    """Refuse a target of inputs beyond [0, 1], in which budgets are.

    Raises:
        TargetError: its bounds are others.
    """
    if all(isinstance(bound, float | int) for bound in target.bounds) and target.bounds == (0.0, 1.0):
        return
    lows, highs = (torch.as_tensor(bound) for bound in target.bounds)
    narrow = lows.ndim > 0 or highs.ndim > 0  # some features have a smaller range than others
    low, high = float(lows.min()), float(highs.max())
    if (low, high) != (0.0, 1.0) and not (narrow and low >= 0 and high <= 1):
        raise TargetError(
            f"the target takes pixels in [{low:g}, {high:g}]; images and eps are in [0, 1]",
            fix=f"bring the pixels there inside the network, x * {high - low:g} + {low:g}, and leave its bounds at (0, 1)",
        )


@full_precision()
def with_clean_logits(target: Target, batch: Batch, batch_size: int = BATCH_SIZE) -> Batch:
    """The batch with the target's output on it, which every attack then shares.

    Of a target that draws random numbers, which a second pass over the first samples shows, it is the mean over several draws.

    Raises:
        TargetError: the target raised, or returned NaN.
        DataError: a label is not one of the target's classes.
    """
    require_unit_pixels(target)
    with torch.no_grad(), channels_last(target.module):

        def probed(part: Tensor) -> Tensor | None:
            with model_errors_explained(part):
                return logits_unless_random(target, part)

        def answered(rows: Tensor) -> tuple[Tensor, Tensor]:
            part = in_full(batch.inputs[rows])
            with model_errors_explained(part):
                if not random:
                    return (one := target(part)), one.argmax(1, keepdim=True)
                drawn = drawn_logits(target, part, batch.index[rows])
            return drawn.mean(1), drawn.argmax(2)

        first = in_memory(probed, batch.inputs[:PROBED], batch_size)
        known = [(part, part.argmax(1, keepdim=True)) for part in first if part is not None]
        if random := len(known) < len(first):
            known = []
        rows = torch.arange(sum(len(part) for part, _ in known), len(batch), device=batch.inputs.device)
        logits, draws = (torch.cat(parts) for parts in zip(*known, *in_memory(answered, rows, batch_size), strict=True))
    if not bool(torch.isfinite(logits).all()):
        bad = int((~torch.isfinite(logits).all(1)).sum())
        masked = bool((logits == -torch.inf).any()) and not bool(torch.isnan(logits).any() | (logits == torch.inf).any())
        raise TargetError(
            f"the model returns NaN or infinite logits for {bad} of {len(batch)} clean samples",
            fix="give classes that are masked a large negative number instead, -1e4, or leave them out" if masked else None,
        )
    for what, classes in (("labels", batch.labels), ("goals", batch.goals)):
        if classes is not None and (int(classes.min()) < 0 or int(classes.max()) >= logits.shape[1]):
            raise DataError(
                f"{what} reach from {int(classes.min())} to {int(classes.max())}, the model has {logits.shape[1]} classes",
                fix=f"use {what} 0..{logits.shape[1] - 1}",
            )
    # A network in double precision is attacked in it: a step in a lower one can be lost.
    precise = torch.promote_types(batch.inputs.dtype, logits.dtype)
    eps = None if batch.eps is None else batch.eps.to(precise)
    return replace(
        batch,
        logits=logits,
        inputs=batch.inputs.to(precise),
        eps=eps,
        draws=draws if random else None,
        rejection=logits.shape[1] - 1 if target.rejects else None,
    )


@evaluating()
def evaluate_attack(
    target: Target,
    attack: Attack,
    batch: Batch,
    threat: ThreatModel,
    *,
    seed: int = 0,
    curve: Sequence[float] = (),
    batch_size: int = BATCH_SIZE,
    fit_data: Arrays | None = None,
    kept: int | None = None,
    shards: Shards | None = None,
    precision: Precision = "full",
    certified: Sequence[bool] = (),
) -> Evaluation[ImageOutcome]:
    """Attack every sample of ``batch`` (with clean logits) at ``threat.eps``, then at each eps of ``curve``.

    The result at ``threat.eps`` is the attack's own, on all samples. The curve costs less than its points would each:
    a sample broken at one eps counts as broken at every larger one, so upwards only the standing samples are attacked,
    and downwards only the broken ones. A minimum-norm attack is run once; its distances give every point. An attack that
    learns is fitted on ``fit_data``, anew for each eps. Of a target that draws random numbers every sample is attacked at each eps:
    what it draws depends on the batch, and the draws must be the same at all of them.

    Args:
        kept: of how many samples, from the first on, the inputs found are returned; all by default.
        shards: done one ``SHARD`` of samples after the other, those that are kept there already left out. Torch's own generator
            is seeded at the beginning of each, so that a target which draws from it gives the same numbers, interrupted or not.
        precision: of the passes in which the attack takes gradients, if it is one of robustkd's.
        certified: whether the first samples, one after the other, are proved to be robust at ``threat.eps``. All but the first
            ``TESTED`` of those are left alone up to there: no attack can break them.

    Raises:
        AttackError: the attack cannot be used under this threat model, or its result breaks it.
        TargetError: the target failed under attack.
    """
    _require_usable(attack, batch, threat, curve)
    attack.require(target)
    threat = with_perceptual_features(threat, target)
    fitted: dict[float, Attack] = {}
    asked = target.in_precision(precision)

    def run(part: Batch, eps: float, wanted: int | None) -> _Found:
        budget = threat if eps == threat.eps else threat.with_eps(eps)
        if attack.traits.learns and eps not in fitted:
            fitted[eps] = _fitted(attack, asked, fit_data, budget, seed, part, batch_size)
        able = fitted.get(eps, attack)

        def attacked(rows: Tensor) -> _Found:
            some = part.select(rows).placed(budget, seed)
            if len(spared) and eps <= threat.eps:
                result = _sparing(spared, able, asked, some, budget, seed)
            else:
                result = able.run(asked, some, budget, SampleRng(seed, some.index))
            outcome, logits = judge_with_logits(target, attack, some, budget, result)
            adversarial = result.adversarial.detach().cpu()
            if wanted is None:
                return outcome, adversarial, logits
            # A copy of those that are wanted: a part of a tensor holds all of it in memory.
            left = max(0, wanted - int(rows[0]))
            return outcome, adversarial[:left].clone(), logits[:left].clone()

        parts = in_memory(attacked, torch.arange(len(part), device=part.inputs.device), batch_size)
        outcomes, found, logits = zip(*parts, strict=True)
        return ImageOutcome.joined(outcomes), torch.cat(found), torch.cat(logits)

    random = batch.draws is not None
    proved = torch.as_tensor(certified, dtype=torch.bool, device=batch.index.device).nonzero().squeeze(1)
    spared = batch.index[proved[:0] if random else proved[TESTED:]]
    parts, draws = [], batch.draws.shape[1] if batch.draws is not None else 1
    for first in range(0, len(batch), SHARD if shards else len(batch)):
        found = shards.read(first, ImageOutcome) if shards else None
        if found is None or found.outcome.draws != draws:  # former versions judged every sample on one draw
            began = time.perf_counter()
            part = batch
            if shards:
                seed_torch(seed + first)
                part = batch.select(torch.arange(first, min(first + SHARD, len(batch)), device=batch.inputs.device))
            before = state_of(target)
            answers = None if batch.logits is None or random or before.buffers else batch.logits[:2]
            if (
                answers is None
            ):  # it draws, or has buffers, so that its answers may depend on when it is asked, and with what else
                answers, before = _answers(target, batch), state_of(target)
            with channels_last(target.module):
                found = _evaluate(run, attack, part, threat, curve, None if kept is None else max(0, kept - first))
            require_unchanged(target, attack, before, answers, lambda: _answers(target, batch), alike)
            if shards:
                shards.write(first, found, time.perf_counter() - began)
        parts.append(found)
    return Evaluation.joined(parts)


def _sparing(spared: Tensor, attack: Attack, target: Target, batch: Batch, threat: ThreatModel, seed: int) -> AttackResult:
    """What an attack finds on the samples whose positions are not ``spared``; the others stay as they are, at no pass."""
    open_, nothing = ~torch.isin(batch.index, spared), torch.zeros_like(batch.index)
    left = AttackResult(batch.inputs, torch.zeros_like(open_), nothing, nothing)
    if not bool(open_.any()):
        return left
    some = batch.select(open_.nonzero().squeeze(1))
    found = attack.run(target, some, threat, SampleRng(seed, some.index))

    def spread(values: Tensor | None, others: Tensor) -> Tensor | None:
        return None if values is None else others.to(values.dtype).index_put((open_,), values)

    return AttackResult(
        left.adversarial.index_put((open_,), found.adversarial),
        left.success.index_put((open_,), found.success),
        nothing.index_put((open_,), found.forwards),
        nothing.index_put((open_,), found.backwards),
        spread(found.loss, torch.full_like(open_, torch.nan, dtype=torch.float32)),
        queries_to_success=spread(found.queries_to_success, nothing),
        skipped=spread(found.skipped, nothing),
    )


def _require_usable(attack: Attack, batch: Batch, threat: ThreatModel, curve: Sequence[float]) -> None:
    """Raise UsageError unless the attack can be run on these samples under this threat model."""
    if reason := attack.refusal(threat):
        raise UsageError(f"attack '{attack.name}' {reason}", fix="choose another norm or attack")
    if batch.goals is None and threat.goal == "targeted":
        raise UsageError("a targeted threat model needs the classes to reach", fix="pass goals, one class a sample")
    if isinstance(threat.budget, PerceptualBudget) and threat.budget.metric == SELF and batch.draws is not None:
        raise UsageError(
            f"the model draws random numbers, so its features are no measure, and the threat model is {threat}",
            fix="name another network as the metric",
        )
    if batch.eps is not None and (curve or float(batch.eps.max()) > threat.eps):
        raise UsageError("budgets of the samples' own stay below the threat's eps, and have no curve")


def _fitted(
    attack: Attack, target: Target, data: Arrays | None, threat: ThreatModel, seed: int, batch: Batch, batch_size: int
) -> Attack:
    if data is None:
        raise UsageError(
            f"attack '{attack.name}' learns from training data, and was given none",
            fix="pass fit_data=(x, y), samples that are not attacked; for a command, take a data set with a training part",
        )
    rng = SampleRng(seed, torch.arange(len(data), device=batch.inputs.device), "fit")

    def fit(size: int) -> Attack:
        # What a target draws meanwhile must not depend on which samples are attacked first, nor shift what it draws on them.
        with seeded(seed):
            return attack.fit(SplitTarget(target, size), data, threat, rng)

    return with_fewer(fit, min(batch_size, len(data)))


def _answers(target: Target, batch: Batch) -> Tensor:
    """The logits of a few clean samples, whatever the network draws being the same each time."""
    with torch.no_grad(), seeded(0):
        return target(batch.inputs[:2])


def _evaluate(
    run: Callable[[Batch, float, int | None], _Found],
    attack: Attack,
    batch: Batch,
    threat: ThreatModel,
    curve: Sequence[float],
    kept: int | None,
) -> Evaluation[ImageOutcome]:
    outcome, adversarial, logits = run(batch, threat.eps, kept)
    broken_at = np.where(outcome.broken, threat.eps, np.inf)
    random = outcome.draws > 1
    if attack.traits.kind == "minimum-norm":
        within = outcome.correct & np.isfinite(outcome.norm)
        if random:  # Beyond the budget it is known what happened on most draws, not on each.
            within = np.where(outcome.success, outcome.broken.T, within).T
            broken_at = np.where(within, np.minimum(broken_at.T, outcome.distance).T, broken_at)
        else:
            broken_at = np.where(within, np.minimum(broken_at, outcome.distance), broken_at)
        return Evaluation(outcome, adversarial, broken_at, logits=logits)

    def extend(open_: np.ndarray, eps: float) -> None:
        if open_.any():
            rows = np.arange(len(outcome)) if random else np.flatnonzero(open_)
            further, _, _ = run(batch.select(torch.as_tensor(rows, device=batch.inputs.device)), eps, 0)
            broken_at[rows] = np.where(open_[rows] & further.broken, eps, broken_at[rows])

    points = set(curve)
    for eps in sorted(point for point in points if point > threat.eps):
        extend(np.isinf(broken_at) if random else outcome.correct & np.isinf(broken_at), eps)
    lower = threat.eps
    for eps in sorted((point for point in points if point < threat.eps), reverse=True):
        extend(broken_at == lower, eps)
        lower = eps
    return Evaluation(outcome, adversarial, broken_at, logits=logits)
