"""MORA: an attack on ensembles that gives the largest weights to the members which decide.

With f_m(x) the members' logits, P = mean_m softmax(f_m(x)), y the label and c the ensemble's best wrong class:

    p_m = softmax(f_m(x) / s),    s = max(1, largest gap between a member's first and second logit / 10)
    w_m = [argmax f_m(x) = y] * p_m,c ( (1 - p_m,c) / P_c  +  p_m,y / P_y )
    Z   = (1 - b) log P / gap(log P)  +  b sum_m w_m f_m(x) / s / sum_m w_m
    maximize J(Z, y);   s, w and the gap are constants of a step

w_m is how fast log P_c - log P_y grows with the member's own logit of c (up to 1/M). The gradient of the mean probability weighs the
members so too, but with untempered p_m: a member that is certain of y then has no gradient at all, and a single such member
can hold the ensemble. Members that are wrong already get weight 0.

The steps are those of the paper: 2 eps at first, linearly down to 0, with momentum. What ranks the points of an attempt is the
ensemble's margin, since J at different steps has different weights.

Good for ensembles with one very sure member, which hides the others from PGD. For a single network it is nothing special:
use ``pgd`` with ``loss: margin``.

Source: Yu, Gao, Xu: MORA: Improving ensemble robustness evaluation with model-reweighing attack (NeurIPS 2022), for ensembles that
average softmax outputs. The paper's 0.9 is b; its c for a misclassified sample is not needed, such a sample is left alone. The other
values of b are those that the authors' code (lafeat/mora) tries one after the other. There the ensemble's output is weighed as one
more member, and softmax of 0.2 f_m gives the weights; next to a very sure member that finds less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.attacks.image.engine.ascent import AttackState, Search, SearchResult, fixed_budget, maximize
from robustkd.attacks.image.engine.ball import Ball
from robustkd.attacks.image.engine.losses import LossName, margin, untargeted
from robustkd.attacks.image.engine.objective import ChosenLoss
from robustkd.attacks.image.engine.oracle import Objective
from robustkd.contracts import Attack, AttackResult, Batch, Params, Target, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.contracts.target import WrappedTarget
from robustkd.lazy import torch
from robustkd.scoring.distances import per_sample
from robustkd.targets.ensemble import log_mean_probability

if TYPE_CHECKING:
    from torch import Tensor

_MOMENTUM = 0.75
_SHARES = 0.9, 0.5, 0.0, 0.25, 0.75, 1.0
_LARGEST_GAP = 10.0  # of tempered logits; beyond, a softmax has no gradient to speak of


class RecordedEnsemble(WrappedTarget):
    """The ensemble, which keeps its members' (M, B, K) logits of the last pass: the objective needs them."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self.member_logits = torch.empty(0)

    def __call__(self, inputs: Tensor) -> Tensor:
        """(B, K) log-probabilities of the ensemble, log P."""
        self.member_logits = torch.stack([member(inputs) for member in self.members])
        return log_mean_probability(self.member_logits)


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
    weight = of_rival * ((1 - of_rival) / of_rival.mean(0) + of_label / of_label.mean(0))
    right = logits.argmax(2) == labels
    weight = torch.where(right | ~right.any(0), weight, 0)
    return weight / weight.sum(0)


def reweighted(member_logits: Tensor, log_p: Tensor, labels: Tensor, share: float) -> Tensor:
    """(B, K) Z of the formula above.

    Args:
        member_logits: (M, B, K).
        log_p: (B, K) log-probabilities of the ensemble.
        labels: (B,).
        share: b.
    """
    rivals = log_p.detach().scatter(1, labels.unsqueeze(1), -torch.inf).argmax(1)
    f = tempered(member_logits)
    weighted = (weights(f, labels, rivals).unsqueeze(2) * f).sum(0)
    best = log_p.detach().topk(2, dim=1).values
    gap = (best[:, 0] - best[:, 1]).clamp_min(1e-6).unsqueeze(1)
    return (1 - share) * log_p / gap + share * weighted


@dataclass(frozen=True)
class DecayingStep:
    """z = project(x + size_t * steepest(gradient)); x + .75 (z - x) + .25 (x - the point before)."""

    steps: int

    def step(self, state: AttackState, t: int) -> Tensor:
        """(A, *shape) x_{t+1} before its projection."""
        x, ball, m = state.x, state.ball, state.memory
        size = 2 * ball.eps * (1 - t / self.steps)
        z = ball.project(x + per_sample(size, x) * ball.steepest(state.gradient, x))
        following = z if t == 0 else x + _MOMENTUM * (z - x) + (1 - _MOMENTUM) * (x - m["previous"])
        m["previous"] = x
        return following


class MORAParams(Params):
    """The steps, the restarts, the loss, and the weight of the reweighed members."""

    steps: int = Field(100, ge=1, description="steps in each restart")
    restarts: int = Field(1, ge=1, description="attempts from other random starts, on the survivors only")
    loss: LossName = Field("ce", description="the loss to maximize: cross entropy, margin, or DLR of Z")
    share: float | None = Field(
        None,
        ge=0,
        le=1,
        description="b, of the reweighed members, the rest being the ensemble's own output; default 0.9, and in the restarts 0.5, 0, "
        "0.25, 0.75 and 1 in turn",
    )


class MORA(ChosenLoss):
    """Model-reweighing attack on an ensemble that averages probabilities."""

    Params = MORAParams
    norms = ("linf", "l2")
    regions = ("given",)
    needs = Attack.needs | {"members"}
    version = "3"  # 2 had one share of the members in all restarts
    source = "Yu, Gao & Xu 2022, arXiv:2211.08008"

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """Takes at most ``restarts * (steps + 1)`` forward and ``restarts * steps`` backward passes a sample, each through all members."""
        p, ensemble = self.params, RecordedEnsemble(target)
        shares = _SHARES if p.share is None else (p.share,)

        def attempt(search: Search, rows: Tensor, ball: Ball, restart: int) -> SearchResult:
            objective = _reweighted_loss(ensemble, batch, p.loss, shares[restart % len(shares)])
            start = ball.random_point(rng.fork(restart).select(rows))
            return maximize(search.oracle, rows, ball, start, objective=objective, update=DecayingStep(p.steps), steps=p.steps)

        return fixed_budget(ensemble, batch, threat, attempt, restarts=p.restarts)


def _reweighted_loss(ensemble: RecordedEnsemble, batch: Batch, loss: LossName, share: float) -> Objective:
    def objective(logits: Tensor, rows: Tensor) -> Tensor:
        labels = batch.labels[rows]
        # The loop evaluates the objective right after the pass that gave ``logits``, so ``member_logits`` belong to it.
        value = untargeted(loss)(reweighted(ensemble.member_logits, logits, labels, share), labels)
        # The value of the margin, which ranks the points, with the gradient of J, which is maximized.
        return margin(logits, labels).detach() + (value - value.detach())

    return objective
