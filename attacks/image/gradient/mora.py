"""MORA: an attack on ensembles that pulls hardest at the members which decide.

With f_m(x) the members' logits, P = mean_m softmax(f_m(x)), y the label and c the ensemble's best wrong class:

    p_m = softmax(f_m(x) / s),    s = max(1, largest gap between a member's first and second logit / 10)
    w_m = [argmax f_m(x) = y] * p_m,c ( (1 - p_m,c) / P_c  +  p_m,y / P_y )
    Z   = (1 - b) log P / gap(log P)  +  b sum_m w_m f_m(x) / s / sum_m w_m
    climb J(Z, y);   s, w and the gap are constants of a step

w_m is how fast log P_c - log P_y grows with the member's own logit of c (up to 1/M). The gradient of the mean probability weighs the
members so too, but with untempered p_m: a member that is certain of y then pulls with no force at all, and a single such member
can hold the ensemble. Members that are wrong already have done their part, and no longer pull.

The steps are those of the paper: 2 eps at first, linearly down to 0, with momentum. What ranks the points of an attempt is the
ensemble's margin, since J at different steps has different weights.

Good for ensembles with one very sure member, which hides the others from PGD. For a single network it is nothing special:
use ``pgd`` with ``loss: margin``.

Source: Yu, Gao, Xu: MORA: Improving ensemble robustness evaluation with model-reweighing attack (NeurIPS 2022), for ensembles that
average softmax outputs. The paper's 0.9 is b; its c for a misclassified sample is not needed, such a sample is left alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.attacks.image.engine.ascent import Climbers, Found, Search, ascend, fixed_budget
from robustkd.attacks.image.engine.ball import Ball
from robustkd.attacks.image.engine.losses import LossName, margin, untargeted
from robustkd.attacks.image.engine.objective import FAMILY_OF
from robustkd.attacks.image.engine.oracle import Objective
from robustkd.contracts import Attack, AttackResult, Batch, Params, Target, ThreatModel
from robustkd.contracts.attack import LossFamily
from robustkd.contracts.random import SampleRng
from robustkd.contracts.target import WrappedTarget
from robustkd.lazy import torch
from robustkd.scoring.distances import per_sample
from robustkd.targets.ensemble import log_mean_probability

if TYPE_CHECKING:
    from torch import Tensor

_MOMENTUM = 0.75
_LARGEST_GAP = 10.0  # of tempered logits; beyond, a softmax has no gradient to speak of


class Members(WrappedTarget):
    """The ensemble, with its members' (M, B, K) logits of the last pass at hand."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self.logits = torch.empty(0)

    def __call__(self, inputs: Tensor) -> Tensor:
        """(B, K) log-probabilities."""
        self.logits = torch.stack([member(inputs) for member in self.members])
        return log_mean_probability(self.logits)


def tempered(logits: Tensor) -> Tensor:
    """(M, B, K) logits over s: no gap between a member's two largest is above 10, and their order stays."""
    best = logits.detach().topk(2, dim=2).values
    scale = ((best[..., 0] - best[..., 1]).amax(0) / _LARGEST_GAP).clamp_min(1)
    return logits / scale.view(1, -1, 1)


def weights(logits: Tensor, labels: Tensor, rivals: Tensor) -> Tensor:
    """(M, B) shares w_m / sum w, for tempered (M, B, K) logits; where every member is wrong, all of them count."""
    p = logits.detach().softmax(2)
    count = len(p)
    of_label = p.gather(2, labels.expand(count, -1).unsqueeze(2)).squeeze(2)
    of_rival = p.gather(2, rivals.expand(count, -1).unsqueeze(2)).squeeze(2)
    pull = of_rival * ((1 - of_rival) / of_rival.mean(0) + of_label / of_label.mean(0))
    right = logits.argmax(2) == labels
    pull = torch.where(right | ~right.any(0), pull, 0)
    return pull / pull.sum(0)


def reweighed(logits: Tensor, whole: Tensor, labels: Tensor, share: float) -> Tensor:
    """Z, (B, K).

    Args:
        logits: (M, B, K) of the members.
        whole: (B, K) log P.
        labels: (B,).
        share: b.
    """
    rivals = whole.detach().scatter(1, labels.unsqueeze(1), -torch.inf).argmax(1)
    even = tempered(logits)
    pulled = (weights(even, labels, rivals).unsqueeze(2) * even).sum(0)
    best = whole.detach().topk(2, dim=1).values
    gap = (best[:, 0] - best[:, 1]).clamp_min(1e-6).unsqueeze(1)
    return (1 - share) * whole / gap + share * pulled


@dataclass(frozen=True)
class DecayingStep:
    """z = project(x + size_t * steepest(gradient)); x + .75 (z - x) + .25 (x - the point before)."""

    steps: int

    def step(self, climbers: Climbers, t: int) -> Tensor:
        """x_{t+1} before its projection."""
        c, m = climbers, climbers.memory
        size = 2 * c.ball.eps * (1 - t / self.steps)
        z = c.ball.project(c.x + per_sample(size, c.x) * c.ball.steepest(c.gradient))
        ahead = z if t == 0 else c.x + _MOMENTUM * (z - c.x) + (1 - _MOMENTUM) * (c.x - m["previous"])
        m["previous"] = c.x
        return ahead


class MORAParams(Params):
    """Parameters of ``mora``."""

    steps: int = Field(100, ge=1, description="steps in each restart")
    restarts: int = Field(1, ge=1, description="attempts from other random starts, on the survivors only")
    loss: LossName = Field("ce", description="what is climbed: cross entropy, margin, or DLR of Z")
    share: float = Field(0.9, ge=0, le=1, description="b, of the reweighed members; the rest is the ensemble's own output")


class MORA(Attack):
    """Model-reweighing attack on an ensemble that averages probabilities."""

    Params = MORAParams
    norms = ("linf", "l2")
    needs = Attack.needs | {"members"}
    version = "2"
    source = "Yu, Gao & Xu 2022, arXiv:2211.08008"

    @property
    def loss_family(self) -> LossFamily:
        """By its loss."""
        return FAMILY_OF[self.params.loss]

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """At most ``restarts * (steps + 1)`` forward and ``restarts * steps`` backward passes a sample, each through all members."""
        p, seen = self.params, Members(target)
        objective = _climbed(seen, batch, p.loss, p.share)

        def run(search: Search, rows: Tensor, ball: Ball, restart: int) -> Found:
            start = ball.random_point(rng.fork(restart).select(rows))
            return ascend(search.oracle, rows, ball, start, objective=objective, rule=DecayingStep(p.steps), steps=p.steps)

        return fixed_budget(seen, batch, threat, run, restarts=p.restarts)


def _climbed(seen: Members, batch: Batch, loss: LossName, share: float) -> Objective:
    def objective(logits: Tensor, rows: Tensor) -> Tensor:
        labels = batch.labels[rows]
        climbed = untargeted(loss)(reweighed(seen.logits, logits, labels, share), labels)
        return margin(logits, labels).detach() + (climbed - climbed.detach())

    return objective
