"""Run an attack on a target and judge it: the one path that campaigns, the command line and the Python interface share."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from robustkd.contracts import (
    Arrays,
    Attack,
    AttackError,
    AttackEvidence,
    BaseAttack,
    BaseTarget,
    Batch,
    DataError,
    Target,
    TargetError,
    ThreatModel,
    Transcript,
    UsageError,
)
from robustkd.contracts.random import SampleRng
from robustkd.contracts.target import Precision
from robustkd.evaluation.judging import Outcome, judge
from robustkd.lazy import torch
from robustkd.targets.failure import failures_told
from robustkd.targets.frozen import recording_gradients
from robustkd.targets.layout import channels_last

if TYPE_CHECKING:
    from torch import Tensor

BATCH_SIZE = 256
"""Samples attacked at once where nothing else is said. No result depends on it."""
SHARD = 256
"""Samples of a shard: what a caller that keeps shards loses at most, when it is killed. No result depends on it."""


@dataclass(frozen=True)
class Evaluation:
    """One attack on one target.

    Attributes:
        outcome: per sample, at ``threat.eps``.
        adversarial: (M, *shape) on the CPU, the inputs found at ``threat.eps`` for the first M <= N samples; all by default.
            Of a model that draws, what it drew; of one that writes, nothing.
        broken_at: (N,) the smallest of all eps tried at which a sample was broken; inf where none did.
        transcripts: of an attack on prompts, the attempt that decided each request; else empty.
        clean: of a model that draws, (N, *shape) what it drew when it was not attacked.
    """

    outcome: Outcome
    adversarial: Tensor
    broken_at: np.ndarray
    transcripts: tuple[Transcript, ...] = ()
    clean: Tensor | None = None

    @classmethod
    def joined(cls, parts: Sequence[Evaluation]) -> Evaluation:
        """The evaluations of consecutive samples as one."""
        return cls(
            Outcome.joined([part.outcome for part in parts]),
            torch.cat([part.adversarial for part in parts]),
            np.concatenate([part.broken_at for part in parts]),
        )


class Shards(Protocol):
    """Where finished parts of an evaluation are kept, so that one that is killed can go on."""

    def read(self, first: int) -> Evaluation | None:
        """The finished part that begins at sample ``first``, or None."""

    def write(self, first: int, found: Evaluation, seconds: float) -> None:
        """Keep the part that begins at sample ``first`` and took ``seconds``."""


def evidence_of(
    name: str,
    attack: BaseAttack,
    threat: ThreatModel,
    outcome: Outcome,
    adversarial: np.ndarray | None,
    transcripts: Sequence[Transcript] = (),
) -> AttackEvidence:
    """A finished attack as checks see it."""
    traits = attack.traits
    return AttackEvidence(
        name=name,
        kind=traits.kind,
        loss_family=traits.loss_family,
        gradients=traits.gradients,
        iterative=traits.iterative,
        averages=traits.averages,
        threat=threat,
        correct_before=outcome.correct,
        standing=outcome.standing,
        distance=outcome.distance,
        adversarial=adversarial,
        attack=None if traits.learns else attack,  # what it learnt is not kept
        passes=outcome.forwards + outcome.backwards,
        transcripts=transcripts,
    )


def make_batch(
    images: np.ndarray | Tensor,
    labels: np.ndarray | Tensor,
    *,
    index: np.ndarray | Tensor | None = None,
    device: torch.device | str = "cpu",
    goals: Tensor | None = None,
    eps: Tensor | None = None,
) -> Batch:
    """A batch from arrays or tensors, checked at the door.

    Args:
        images: (N, *shape) in [0, 1].
        labels: (N,) integers.
        index: (N,) positions in the data set; 0..N-1 by default.
        device: where the attack will run.
        goals: (N,) classes to reach, for a targeted threat model.
        eps: (N,) a budget for each sample.

    Raises:
        DataError: pixels outside [0, 1] or not finite, or labels or budgets that do not fit.
    """
    inputs = torch.as_tensor(images)
    classes = torch.as_tensor(labels)
    inputs, classes = _ordinary(inputs), _ordinary(classes)
    goals, eps = goals if goals is None else _ordinary(goals), eps if eps is None else _ordinary(eps)
    if inputs.dtype in (torch.float16, torch.bfloat16):
        inputs = inputs.float()  # too coarse to measure a distance in; the network is given images in its own type
    if not inputs.is_floating_point():
        raise DataError(f"images are {inputs.dtype}", fix="convert them to floating point in [0, 1] (divide bytes by 255)")
    if len(inputs) == 0 or classes.shape != inputs.shape[:1] or classes.is_floating_point():
        raise DataError(
            f"{len(inputs)} images but labels of shape {tuple(classes.shape)} ({classes.dtype})", fix="one integer per image"
        )
    low, high = float(inputs.min()), float(inputs.max())
    if not (low >= 0 and high <= 1):
        raise DataError(
            f"pixels reach from {low:.4g} to {high:.4g}, outside [0, 1]",
            fix="give images in [0, 1]; normalise inside the model",
        )
    position = torch.arange(len(inputs)) if index is None else torch.as_tensor(index)
    if eps is not None:
        eps = eps.to(inputs.dtype)
        if eps.shape != classes.shape or not bool((eps >= 0).all()):
            raise DataError(f"budgets of shape {tuple(eps.shape)} for {len(inputs)} images", fix="one eps >= 0 per image")
    return Batch(inputs, classes.to(torch.int64), position.to(torch.int64), goals=goals, eps=eps).to(device)


def _ordinary(tensor: Tensor) -> Tensor:
    """The tensor, or a copy through which gradients can be taken, of one that was made inside ``torch.inference_mode``."""
    return tensor.clone() if tensor.is_inference() else tensor


def with_clean_logits(target: Target, batch: Batch, batch_size: int = BATCH_SIZE) -> Batch:
    """The batch with the target's output on it, which every attack then shares.

    Raises:
        TargetError: the target raised, or returned NaN.
        DataError: a label is not one of the target's classes.
    """
    with torch.no_grad(), channels_last(target.module):
        parts = []
        for part in batch.inputs.split(batch_size):
            with failures_told(part):
                parts.append(target(part))
        logits = torch.cat(parts)
    if not bool(torch.isfinite(logits).all()):
        bad = int((~torch.isfinite(logits).all(1)).sum())
        raise TargetError(f"the model returns NaN or infinite logits for {bad} of {len(batch)} clean samples")
    if int(batch.labels.min()) < 0 or int(batch.labels.max()) >= logits.shape[1]:
        raise DataError(
            f"labels reach from {int(batch.labels.min())} to {int(batch.labels.max())}, the model has {logits.shape[1]} classes",
            fix=f"use labels 0..{logits.shape[1] - 1}",
        )
    return replace(batch, logits=logits)


@recording_gradients()
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
) -> Evaluation:
    """Attack every sample of ``batch`` (with clean logits) at ``threat.eps``, then at each eps of ``curve``.

    The result at ``threat.eps`` is the attack's own, on all samples. The curve costs less than its points would each:
    a sample broken at one eps counts as broken at every larger one, so upwards only the standing samples are attacked,
    and downwards only the broken ones. A minimum-norm attack is run once; its distances give every point. An attack that
    learns is fitted on ``fit_data``, anew for each eps.

    Args:
        kept: of how many samples, from the first on, the inputs found are returned; all by default.
        shards: done one ``SHARD`` of samples after the other, those that are kept there already left out. Torch's own generator
            is seeded at the beginning of each, so that a target which draws from it gives the same numbers, interrupted or not.
        precision: of the passes in which the attack takes gradients, if it is one of robustkd's.

    Raises:
        AttackError: the attack cannot be used under this threat model, or its result breaks it.
        TargetError: the target failed under attack.
    """
    _require_usable(attack, batch, threat, curve)
    attack.require(target)
    fitted: dict[float, Attack] = {}
    asked = target.in_precision(precision)

    def run(part: Batch, eps: float) -> tuple[Outcome, Tensor]:
        budget = ThreatModel(threat.norm, eps, threat.space, threat.goal, threat.knowledge)
        if attack.traits.learns and eps not in fitted:
            fitted[eps] = _fitted(attack, asked, fit_data, budget, seed, part)
        able = fitted.get(eps, attack)
        outcomes, found = [], []
        for rows in torch.arange(len(part), device=part.inputs.device).split(batch_size):
            some = part.select(rows)
            result = able.run(asked, some, budget, SampleRng(seed, some.index))
            outcomes.append(judge(target, attack, some, budget, result))
            found.append(result.adversarial.detach().cpu())
        return Outcome.joined(outcomes), torch.cat(found)

    parts = []
    for first in range(0, len(batch), SHARD if shards else len(batch)):
        found = shards.read(first) if shards else None
        if found is None:
            began = time.perf_counter()
            part = batch
            if shards:
                torch.manual_seed(seed + first)
                part = batch.select(torch.arange(first, min(first + SHARD, len(batch)), device=batch.inputs.device))
            before = marks_of(target)
            with channels_last(target.module):
                found = _evaluate(run, attack, part, threat, curve)
            _check_unchanged(target, attack, batch, before)
            if kept is not None:
                found = replace(found, adversarial=found.adversarial[: max(0, kept - first)].clone())
            if shards:
                shards.write(first, found, time.perf_counter() - began)
        parts.append(found)
    return parts[0] if len(parts) == 1 else Evaluation.joined(parts)


def _require_usable(attack: Attack, batch: Batch, threat: ThreatModel, curve: Sequence[float]) -> None:
    """Raise UsageError unless the attack can be run on these samples under this threat model."""
    if reason := attack.refusal(threat):
        raise UsageError(f"attack '{attack.name}' {reason}", fix="choose another norm or attack")
    if batch.goals is None and threat.goal == "targeted":
        raise UsageError("a targeted threat model needs the classes to reach", fix="pass goals, one class a sample")
    if batch.eps is not None and (curve or float(batch.eps.max()) > threat.eps):
        raise UsageError("budgets of the samples' own stay below the threat's eps, and have no curve")


def _check_unchanged(target: Target, attack: Attack, batch: Batch, before: list[tuple[object, ...]]) -> None:
    after = marks_of(target)
    if after == before:
        return
    with torch.no_grad():
        target(batch.inputs[:2])
    if marks_of(target) != after:
        raise TargetError(
            "the model changes its own weights or buffers when it is run",
            fix="put every part of it into evaluation mode (BatchNorm with batch statistics keeps a running mean)",
        )
    raise left_changed(attack)


def left_changed(attack: BaseAttack) -> AttackError:
    """What is said of an attack that does not leave the target as it found it."""
    return AttackError(
        f"{type(attack).__name__} left the model changed (mode, flags, weights or buffers)",
        fix="an attack restores training mode and requires_grad, and never writes weights or BatchNorm statistics",
    )


def _fitted(attack: Attack, target: Target, data: Arrays | None, threat: ThreatModel, seed: int, batch: Batch) -> Attack:
    if data is None:
        raise UsageError(
            f"attack '{attack.name}' learns from training data, and was given none",
            fix="pass fit_data=(x, y): samples that are not attacked",
        )
    device = batch.inputs.device
    # What a target draws meanwhile must not depend on which samples are attacked first, nor shift what it draws on them.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        return attack.fit(target, data, threat, SampleRng(seed, torch.arange(len(data), device=device), "fit"))


def marks_of(target: BaseTarget) -> list[tuple[object, ...]]:
    """What an attack must leave as it is. A tensor's version counts its in-place writes, so no copy is needed; but batch
    normalisation writes its buffers past it, so they are hashed.
    """
    tensors = [*target.module.named_parameters(), *target.module.named_buffers()]
    modes = [(name, module.training) for name, module in target.module.named_modules()]
    contents = [(name, _hash(buffer)) for name, buffer in target.module.named_buffers()]
    return [*((name, id(tensor), tensor._version, tensor.requires_grad) for name, tensor in tensors), *modes, *contents]


def _hash(tensor: Tensor) -> bytes:
    return hashlib.sha256(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data).digest()


def _evaluate(
    run: Callable[[Batch, float], tuple[Outcome, Tensor]],
    attack: Attack,
    batch: Batch,
    threat: ThreatModel,
    curve: Sequence[float],
) -> Evaluation:
    outcome, adversarial = run(batch, threat.eps)
    broken_at = np.where(outcome.success, threat.eps, np.inf)
    if attack.traits.kind == "minimum-norm":
        within = outcome.correct & np.isfinite(outcome.norm)
        broken_at = np.where(within, np.minimum(broken_at, outcome.distance), broken_at)
        return Evaluation(outcome, adversarial, broken_at)

    def extend(rows: np.ndarray, eps: float) -> None:
        if rows.any():
            at = torch.as_tensor(np.flatnonzero(rows), device=batch.inputs.device)
            further, _ = run(batch.select(at), eps)
            broken_at[np.flatnonzero(rows)[further.success]] = eps

    points = set(curve)
    for eps in sorted(point for point in points if point > threat.eps):
        extend(outcome.correct & np.isinf(broken_at), eps)
    lower = threat.eps
    for eps in sorted((point for point in points if point < threat.eps), reverse=True):
        extend(broken_at == lower, eps)
        lower = eps
    return Evaluation(outcome, adversarial, broken_at)
