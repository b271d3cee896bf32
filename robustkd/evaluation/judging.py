"""What happened to each sample, and the platform's own judgement of an attack on images.

A plug-in's claim is not evidence. Each adversarial input is measured against the threat model and shown to the target
once more; what is counted is what was seen here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Self

import numpy as np

from robustkd.contracts import Attack, AttackError, AttackResult, Batch, Target, ThreatModel
from robustkd.lazy import torch
from robustkd.scoring.distances import TOLERANCE, distance, within
from robustkd.scoring.finite import require_finite

STRAYS, GROSS = 0.1, 2.0
"""The share of results outside their budget, and the multiple of it that one of them spends, beyond which the attack cannot have
meant this budget."""


@dataclass(frozen=True)
class Outcome(ABC):
    """What happened to each sample; every array has shape (N,).

    Attributes:
        index: position in the data set.
        label: the true class of an image, the category of a request.
        eligible: whether an attack could succeed at all: the image was classified rightly, the model could comply with the request.
        success: was eligible, and the attack reached its goal inside the budget.
        forwards, backwards: passes spent.
        needs_judge: whether a judge says what is a success, so that it may be unknown.
    """

    index: np.ndarray
    label: np.ndarray
    eligible: np.ndarray
    success: np.ndarray
    forwards: np.ndarray
    backwards: np.ndarray

    needs_judge: ClassVar[bool] = False
    _NAMES: ClassVar[Mapping[str, str]] = {}

    def __len__(self) -> int:
        return len(self.label)

    @property
    @abstractmethod
    def spent(self) -> np.ndarray:
        """(N,) what was spent of the budget."""

    @property
    def median_norm(self) -> float | None:
        """The median norm of the perturbations found; None where there are none."""
        return None

    @property
    def decided(self) -> np.ndarray:
        """(N,) bool: eligible, and it is known whether the attack broke it."""
        return self.eligible

    @property
    def standing(self) -> np.ndarray:
        """(N,) bool: eligible, and known not to be broken by this attack."""
        standing: np.ndarray = self.decided & ~self.success
        return standing

    @property
    def passes(self) -> np.ndarray:
        """(N,) forward and backward passes."""
        total: np.ndarray = self.forwards + self.backwards
        return total

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The outcomes of consecutive batches as one."""
        return cls(**{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)})

    def columns(self) -> dict[str, np.ndarray]:
        """The arrays by the names under which they are stored and shown."""
        return {self._NAMES.get(f.name, f.name): getattr(self, f.name) for f in fields(self)}

    @classmethod
    def of_columns(cls, columns: Mapping[str, np.ndarray]) -> Self:
        """The inverse of ``columns``; further ones are ignored."""
        return cls(**{f.name: columns[cls._NAMES.get(f.name, f.name)] for f in fields(cls)})


@dataclass(frozen=True)
class ImageOutcome(Outcome):
    """What happened to each image; every array has shape (N,).

    Attributes:
        before, after: predicted class of the clean and of the returned input.
        distance: of the returned input from the clean one, in the threat model's norm.
        norm: of a minimum-norm attack, the distance in its own norm (inf where it found nothing); else ``distance``.
        loss: the attack's own (NaN when it reports none).
    """

    before: np.ndarray
    after: np.ndarray
    distance: np.ndarray
    norm: np.ndarray
    loss: np.ndarray

    _NAMES: ClassVar[Mapping[str, str]] = {"eligible": "correct"}

    @property
    def correct(self) -> np.ndarray:
        """(N,) bool: classified rightly before the attack; these samples are the eligible ones."""
        return self.eligible

    @property
    def median_norm(self) -> float | None:
        """Over the eligible samples for which one was found."""
        reached = self.norm[self.eligible & np.isfinite(self.norm)]
        return float(np.median(reached)) if len(reached) else None

    @property
    def spent(self) -> np.ndarray:
        """(N,) the distance."""
        return self.distance


@dataclass(frozen=True)
class PromptOutcome(Outcome):
    """What happened to each request; every array has shape (N,).

    A request is broken (``success``), it withstood (``standing``), or it could not be judged.

    Attributes:
        unjudged: eligible, and no judge could judge any of the answers that it got under attack.
        attempts: made on it.
    """

    unjudged: np.ndarray
    attempts: np.ndarray

    needs_judge: ClassVar[bool] = True

    @property
    def decided(self) -> np.ndarray:
        """(N,) bool: eligible, and at least one answer could be judged."""
        decided: np.ndarray = self.eligible & ~self.unjudged
        return decided

    @property
    def spent(self) -> np.ndarray:
        """(N,) the attempts."""
        return self.attempts


def judge(target: Target, attack: Attack, batch: Batch, threat: ThreatModel, result: AttackResult) -> ImageOutcome:
    """Measure ``result`` and run the target on it.

    A sample whose result lies outside its budget is not broken by it; the check ``threat-model-audit`` names such samples.

    Raises:
        AttackError: the result is no answer to the question that was asked: wrong shape, not finite, outside the pixel
            range, or (fixed budget) outside the budget: for more than ``STRAYS`` of the samples, or by more than ``GROSS`` times.
        TargetError: the target's logits are NaN or infinite.
    """
    adversarial = result.adversarial
    name = type(attack).__name__
    if adversarial.shape != batch.inputs.shape:
        raise AttackError(
            f"{name} returned inputs of shape {tuple(adversarial.shape)} for a batch of {tuple(batch.inputs.shape)}",
            fix="return one adversarial input for each sample, in the order given",
        )
    difference = adversarial - batch.inputs
    spent = distance(difference, threat.norm)
    allowed = batch.budget(threat)
    inside = within(spent, allowed, threat.norm, adversarial.shape[1:])
    _audit(name, attack, adversarial, spent, allowed, inside, threat, target.bounds)
    with torch.no_grad():
        clean, attacked = batch.logits if batch.logits is not None else target(batch.inputs), target(adversarial)
    require_finite(clean, "the model's logits", "clean samples")
    require_finite(attacked, "the model's logits", "attacked samples")
    before, after = clean.argmax(1), attacked.argmax(1)
    correct = before == batch.labels
    reached = batch.reached(after)
    success = correct & reached & inside
    norm = spent
    if attack.traits.kind == "minimum-norm":
        norm = torch.where(reached, distance(difference, attack.minimises(threat)), torch.inf)
    loss = result.loss if result.loss is not None else torch.full_like(spent, torch.nan)
    columns = {
        "index": batch.index,
        "label": batch.labels,
        "before": before,
        "after": after,
        "eligible": correct,
        "success": success,
        "distance": spent,
        "norm": norm,
        "loss": loss,
        "forwards": result.forwards,
        "backwards": result.backwards,
    }
    return ImageOutcome(**{key: value.detach().cpu().numpy() for key, value in columns.items()})


def _audit(
    name: str,
    attack: Attack,
    adversarial: torch.Tensor,
    spent: torch.Tensor,
    allowed: torch.Tensor,
    inside: torch.Tensor,
    threat: ThreatModel,
    bounds: tuple[float, float],
) -> None:
    if not bool(torch.isfinite(adversarial).all()):
        raise AttackError(f"{name} returned NaN or infinite pixels", fix="a failed sample is returned as its best valid try")
    low, high = float(adversarial.min()), float(adversarial.max())
    if low < bounds[0] - TOLERANCE or high > bounds[1] + TOLERANCE:
        raise AttackError(
            f"{name} left the pixel range: its results reach from {low:.4g} to {high:.4g}, allowed is [{bounds[0]:g}, {bounds[1]:g}]",
            fix="clip the adversarial inputs to the target's bounds",
        )
    over = int((~inside).sum())
    gross = over > STRAYS * len(inside) or not bool(within(spent, GROSS * allowed, threat.norm, adversarial.shape[1:]).all())
    if attack.traits.kind == "fixed-budget" and gross:
        worst = int((spent - allowed).argmax())
        raise AttackError(
            f"{name} left its budget on {over} of {len(inside)} samples: {threat.norm} distance {float(spent[worst]):.6g}, "
            f"allowed is {float(allowed[worst]):.6g}",
            fix="project the perturbation onto the eps ball (eps is in units of [0, 1] pixels, not 0..255)",
        )
