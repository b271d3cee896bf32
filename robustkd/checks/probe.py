"""What several checks share: which samples to look at, attacks run again, points of a ball, and whose point one is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from robustkd import plugins
from robustkd.contracts import Attack, AttackEvidence, Batch, CheckContext, RobustkdError, Target, ThreatModel
from robustkd.contracts.image_changes import ImageChange
from robustkd.contracts.random import SampleRng
from robustkd.contracts.target import Bounds
from robustkd.contracts.threat import Norm
from robustkd.evaluation.judging import ImageOutcome, judge
from robustkd.evaluation.suite import AT_FIRST, HIDDEN, TargetDiagnostics, by_gradient, in_norm
from robustkd.lazy import torch
from robustkd.scoring.distances import distance, random_offsets, within
from robustkd.scoring.worst_case import worst_case

if TYPE_CHECKING:
    from torch import Tensor

SMALL = 0.002
"""0.2 points: what separates chance from a symptom where an attack breaks what a stronger one left."""


def gradient_attacks(context: CheckContext) -> list[AttackEvidence]:
    """Of the headline's, the iterative fixed-budget ones that differentiate the target; the one that broke most comes first."""
    usable = [a for a in context.headline if a.gradients and a.iterative and a.kind == "fixed-budget"]
    return sorted(usable, key=lambda attack: int(attack.standing.sum()))


def right(context: CheckContext, most: int) -> Batch:
    """The first ``most`` samples that are classified rightly."""
    logits = context.batch.logits
    assert logits is not None
    return context.batch.select((logits.argmax(1) == context.batch.labels).nonzero().squeeze(1)[:most])


def survivors(context: CheckContext, attacks: list[AttackEvidence], most: int) -> Batch:
    """The first ``most`` samples that every one of ``attacks`` left standing."""
    standing = worst_case(attack.standing for attack in attacks)
    return context.batch.select(torch.as_tensor(np.flatnonzero(standing)[:most], device=context.batch.inputs.device))


def pgd(threat: ThreatModel, **params: Any) -> Attack:
    """Plain PGD, where a check needs an attack of its own; in l0 sPGD."""
    attack: Attack = plugins.make("attacks", in_norm({"kind": "pgd", **params}, threat))
    return attack


def attacked(context: CheckContext, attack: Attack, target: Target, batch: Batch, threat: ThreatModel) -> ImageOutcome:
    """One attack run again, and judged as the platform judges every attack."""
    batch = batch.placed(threat, context.seed)
    result = attack.run(target, batch, threat, SampleRng(context.seed, batch.index))
    return judge(target, attack, batch, threat, result)


def random_points(centre: Tensor, eps: float, norm: Norm, rng: SampleRng, bounds: Bounds) -> Tensor:
    """(B, *shape) uniform in each sample's ball (for l1 a random direction and radius), cut to the pixel range."""
    return (centre + random_offsets(eps, centre.shape[1:], norm, rng, centre.dtype)).clamp(*bounds)


def rescaled_margin(logits: Tensor, labels: Tensor, goals: Tensor | None = None) -> Tensor:
    """max_{j != y} z_j - z_y over the largest minus the mean logit: positive when misclassified, blind to the logits' scale.

    With goals t it is z_t - max_{j != t} z_j over the same: positive where the goal is reached.

    The scale-free loss of the platform's checks; DLR (Croce & Hein 2020, equation 6) divides by z_(1) - z_(3), which needs three
    classes and is 0 where three logits tie.
    """
    if goals is not None:
        return -rescaled_margin(logits, goals)
    own = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    best_other = logits.scatter(1, labels.unsqueeze(1), -torch.inf).amax(1)
    spread = logits.amax(1) - logits.mean(1)
    return (best_other - own) / spread.clamp_min(torch.finfo(logits.dtype).tiny)


def disjoint_balls(batch: Batch, threat: ThreatModel) -> Batch:
    """The samples whose balls meet no other sample's ball, so that a point inside one tells whose it is."""
    rows = torch.arange(len(batch), device=batch.inputs.device)
    kept: list[int] = []
    for row in rows.tolist():
        others = batch.inputs[kept]
        if not kept or float(distance(others - batch.inputs[row], threat.norm).min()) > 2 * threat.eps * (1 + 1e-3) + 1e-3:
            kept.append(row)
    return batch.select(rows[kept])


def ball_of(points: Tensor, centres: Tensor, threat: ThreatModel) -> Tensor:
    """(P,) the row of ``centres`` in whose ball each point lies, -1 for none; the balls must be ``disjoint_balls``."""
    away = torch.stack([distance(points - centre, threat.norm) for centre in centres], 1)
    nearest = away.min(1)
    inside = within(nearest.values, threat.eps, threat.norm, centres.shape[1:])
    return torch.where(inside, nearest.indices, -1)


def gradient_misleads(context: CheckContext, batch: Batch, broken: np.ndarray, diagnostics: TargetDiagnostics) -> bool:
    """Whether the target's gradient breaks less than half of the samples that were broken without it; ``broken``: (B,) bool.

    No more than ``AT_FIRST`` of them are attacked, and all samples of a target that draws: what it draws depends on the batch.
    """
    rows = np.flatnonzero(broken)[:AT_FIRST]
    attack = by_gradient(diagnostics, context.threat)
    if not len(rows) or isinstance(context.threat.budget, ImageChange):  # a loss over angles or colours has many local maxima
        return False
    if attack.usable(context.target, context.threat):
        return True
    asked = np.arange(len(batch)) if diagnostics.draws else rows
    part = batch.select(torch.as_tensor(asked, device=batch.inputs.device))
    try:
        found = attacked(context, attack.make(), context.target, part, context.threat)
    except RobustkdError:
        return True
    return bool(found.success[np.isin(asked, rows)].mean() < HIDDEN)


def white_box(context: CheckContext) -> Attack | None:
    """The campaign's strongest iterative gradient attack, to be run again; None when it has none."""
    return next((a.attack for a in gradient_attacks(context) if isinstance(a.attack, Attack)), None)
