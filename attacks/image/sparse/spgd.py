"""sPGD: ascent on a dense perturbation p and on a mask m of scores, whose highest eps choose the pixels.

    x_t      = x + p_t * [m_t is among its eps highest]
    m_t+1    = m_t + beta * sqrt(n) * g_m / ||g_m||_2      g_m: gradient with respect to m through sigmoid(m) * p, n: values
    p_t+1    = clip(p_t + alpha * sign(g_p))               g_p: gradient with respect to p

A mask that has chosen the same pixels in three steps, consecutive or not, is drawn again, and p stays as it is in that step. Of two
ways to take g_p, the projected one moves the chosen pixels alone, the unprojected one (the default) all of them, as if the mask were
soft. They break different samples.

Good for l0 at some hundred passes, where gradients are honest. The mask's gradient is that of a relaxation: on networks that are
robust to few pixels ``sparse-rs`` finds what it misses, and ``autoattack`` runs both.

Source: Zhong, Liu, Liu: Towards efficient training and evaluation of robust models against l0 bounded adversarial perturbations
(ICML 2024), algorithm 1. Theirs are the step sizes and the patience. Ours: a pixel of inputs without channels is a value, the scores
are compared before the sigmoid, where none is rounded to 1, and the loss can be chosen. The paper counts consecutive steps; the
authors' code counts all of them as long as any sample of the batch has such a step, which breaks more. Here all are counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.attacks.image.engine.ascent import AttackState, Search, SearchResult, fixed_budget, maximize
from robustkd.attacks.image.engine.ball import Ball
from robustkd.attacks.image.engine.losses import LossParam
from robustkd.attacks.image.engine.objective import ChosenLoss, for_batch
from robustkd.contracts import AttackResult, Batch, Params, Target, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch
from robustkd.scoring.distances import distance, per_sample
from robustkd.scoring.pixels import highest, over_channels

if TYPE_CHECKING:
    from torch import Tensor

_TINY = 1e-10  # a mask whose gradient is no longer than this stays


class SPGDParams(Params):
    """Parameters of ``spgd``; step sizes and patience are the authors', who evaluate with up to 10,000 steps."""

    steps: int = Field(300, ge=1, description="steps in each restart")
    projected: bool = Field(False, description="move the chosen pixels alone, instead of all")
    alpha: float = Field(0.25, gt=0, description="step of the perturbation, as a share of the pixel range")
    beta: float = Field(0.25, gt=0, description="step of the mask in l2, as a share of the square root of the number of values")
    patience: int = Field(
        3, ge=1, description="after so many steps, in all, without another choice of pixels the mask is drawn again"
    )
    restarts: int = Field(1, ge=1, description="attempts with other random numbers, on the survivors only")
    loss: LossParam = "ce"
    stop_when_broken: bool = Field(True, description="stop at a sample's first adversarial point")


class SPGD(ChosenLoss):
    """Sparse projected gradient descent."""

    Params = SPGDParams
    norms = ("l0",)
    goals = ("untargeted", "targeted")
    version = "2"  # 1 drew the mask again a pass earlier, before the third step in its pixels had been looked at
    source = "Zhong et al. 2024, arXiv:2405.05075"

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """Takes at most ``restarts * (steps + 1)`` forward and ``restarts * steps`` backward passes a sample."""
        p = self.params
        objective = for_batch(p.loss, batch)

        def attempt(search: Search, rows: Tensor, ball: Ball, restart: int) -> SearchResult:
            update = SPGDStep(rng.fork(restart), p.projected, p.alpha, p.beta, p.patience)
            start = update.start(ball, rows)
            return maximize(
                search.oracle,
                rows,
                ball,
                start,
                objective=objective,
                update=update,
                steps=p.steps,
                stop_when_broken=p.stop_when_broken,
            )

        return fixed_budget(target, batch, threat, attempt, restarts=p.restarts)


@dataclass(frozen=True)
class SPGDStep:
    """One step of algorithm 1. ``state.memory`` has ``dense``, the image with the perturbation of all pixels, and ``mask``."""

    rng: SampleRng
    projected: bool
    alpha: float
    beta: float
    patience: int

    def start(self, ball: Ball, rows: Tensor) -> Tensor:
        """(A, *shape) the images with a random perturbation of random pixels."""
        return torch.where(highest(self._mask(ball, rows, "mask"), ball.eps), self._dense(ball, rows), ball.centre)

    def step(self, state: AttackState, t: int) -> Tensor:
        """(A, *shape) the next points, of ``ball.eps`` pixels."""
        m, ball = state.memory, state.ball
        low, high = ball.bounds
        if t == 0:
            m["dense"], m["mask"] = self._dense(ball, state.rows), self._mask(ball, state.rows, "mask")
            m["before"] = torch.zeros_like(m["mask"], dtype=torch.bool)
            m["idle"] = torch.zeros_like(state.rows)
        chosen = highest(m["mask"], ball.eps)
        soft = m["mask"].sigmoid()
        uphill = over_channels(state.gradient * (m["dense"] - ball.centre)) * soft * (1 - soft)
        length = distance(uphill, "l2")
        stride = self.beta * math.sqrt(ball.centre[0].numel()) * (length > _TINY) / length.clamp_min(_TINY)
        mask = m["mask"] + per_sample(stride, uphill) * uphill
        moved = state.gradient * chosen if self.projected else state.gradient
        dense = (m["dense"] + self.alpha * (high - low) * moved.sign()).clamp(*ball.bounds)
        idle = m["idle"] + (chosen == m["before"]).flatten(1).all(1)
        stuck = idle >= self.patience
        if bool(stuck.any()):
            mask = torch.where(per_sample(stuck, mask), self._mask(ball, state.rows, t), mask)
            dense = torch.where(per_sample(stuck, dense), m["dense"], dense)
        m["dense"], m["mask"], m["before"] = dense, mask, chosen
        m["idle"] = torch.where(stuck, 1, idle)  # the authors count the first look at what was drawn, too
        return torch.where(highest(mask, ball.eps), dense, ball.centre)

    def _mask(self, ball: Ball, rows: Tensor, name: str | int) -> Tensor:
        return self.rng.fork(name).select(rows).normal(over_channels(ball.centre).shape[1:], ball.centre.dtype)

    def _dense(self, ball: Ball, rows: Tensor) -> Tensor:
        low, high = ball.bounds
        offsets = self.rng.fork("start").select(rows).uniform(ball.centre.shape[1:], -1, 1, ball.centre.dtype)
        return (ball.centre + (high - low) * offsets).clamp(*ball.bounds)
