"""Bandits: a gradient that is remembered from step to step, in coarse tiles.

    q1, q2 = v + delta u, v - delta u,   u normal, v and u one number for each tile
    D      = (J(x + fd q1 / ||q1||) - J(x + fd q2 / ||q2||)) / fd
    v      = v + lr D u (l2);   v = exponentiated gradient of it (linf)
    x      = project(x + size * steepest(v))

Good with few queries: the gradient of the last step is a good guess of the next (time), and neighbouring pixels share theirs
(data). Saturated scores have no differences to learn from.

Source: Ilyas, Engstrom, Madry: Prior convictions: black-box adversarial attacks with bandits and priors (ICLR 2019), algorithms 1
to 3. D, the step sizes and the loss are those of the authors' code (MadryLab/blackbox-bandits). In the paper D is also divided by delta,
which with the values for l2 makes the first direction a hundred times as long: it is then kept. Their queries may leave the
pixel range; here x makes room for them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.attacks.image.engine.ascent import AttackState, SteepestStep
from robustkd.attacks.image.engine.ball import StepSize
from robustkd.attacks.image.engine.estimates import with_room
from robustkd.attacks.image.engine.from_inputs import maximize_from_inputs
from robustkd.attacks.image.engine.losses import LossParam
from robustkd.attacks.image.engine.objective import ChosenLoss, for_batch
from robustkd.attacks.image.engine.oracle import Objective, Oracle
from robustkd.contracts import AttackResult, Batch, Params, Target, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.contracts.threat import Norm
from robustkd.lazy import torch
from robustkd.scoring.distances import per_sample

if TYPE_CHECKING:
    from torch import Tensor

_SURE = 1 - 1e-6  # of a tile's sign; further on single precision is at 1


@dataclass(frozen=True)
class BanditGradient:
    """The latent gradient after one more comparison: two forward passes.

    Attributes:
        exploration: delta, how much of a random direction is added to the latent gradient.
        radius: fd, how far to look in l2, in pixel units.
        lr: of the latent gradient.
        tile: pixels along the side of a tile; of inputs without height and width every number is a tile.
    """

    rng: SampleRng
    exploration: float
    radius: float
    lr: float
    tile: int
    norm: Norm

    def __call__(self, oracle: Oracle, state: AttackState, objective: Objective, t: int) -> Tensor:
        """(A, *shape) the latent gradient, a tile's number in each of its pixels."""
        x, rows = state.x, state.rows
        tiled = x.ndim == 4
        coarse = (x.shape[1], *(-(-side // self.tile) for side in x.shape[2:])) if tiled else tuple(x.shape[1:])
        latent = state.memory["latent"] if t else x.new_zeros((len(x), *coarse))

        def full(values: Tensor) -> Tensor:
            if not tiled:
                return values
            return values.repeat_interleave(self.tile, 2).repeat_interleave(self.tile, 3)[:, :, : x.shape[2], : x.shape[3]]

        u = self.rng.fork(t).select(rows).normal(coarse, x.dtype) / math.sqrt(math.prod(coarse))

        def looked(side: float) -> Tensor:
            q = full(latent + side * self.exploration * u)
            return self.radius * q / per_sample(q.flatten(1).norm(dim=1), q).clamp_min(1e-30)

        ahead, behind = looked(1.0), looked(-1.0)
        inside = with_room(x, torch.maximum(ahead.abs(), behind.abs()), state.ball.bounds)
        shown = [(inside + step).clamp(*state.ball.bounds) for step in (ahead, behind)]
        losses = [objective(oracle.logits(point, rows), rows).to(x.dtype) for point in shown]
        slope = (losses[0] - losses[1]) / self.radius
        step = self.lr * per_sample(slope, u) * u
        if self.norm == "linf":
            # Exponentiated gradients of p = (latent + 1) / 2: the log-odds of p, 2 atanh(latent), rise by 2 step.
            step = torch.tanh(torch.atanh(latent.clamp(-_SURE, _SURE)) + step) - latent
        state.memory["latent"] = latent = latent + step
        return full(latent)


class BanditsParams(Params):
    queries: int = Field(5000, ge=4, description="forward passes for each sample; three a step")
    step_size: float | None = Field(None, gt=0, description="in pixel units; default: a fifth of eps in linf, a tenth in l2")
    exploration: float | None = Field(
        None, gt=0, description="delta, the share of a random direction in what is compared; default: 1 in linf, 0.01 in l2"
    )
    radius: float | None = Field(
        None, gt=0, description="fd, how far to look in l2, in pixel units; default: 0.1 in linf, 0.01 in l2"
    )
    lr: float | None = Field(None, gt=0, description="of the latent gradient; default: 100 in linf, 0.1 in l2")
    tile: int = Field(4, ge=1, description="pixels along the side of a tile that shares its gradient; 1: no data prior")
    loss: LossParam = "ce"


class Bandits(ChosenLoss):
    """Bandits with priors of time and data: needs no gradient."""

    Params = BanditsParams
    norms = ("linf", "l2")
    goals = ("untargeted", "targeted")
    gradients = False
    version = (
        "2"  # 1 kept its first direction in l2, took steps a fourth or half as long, and cut queries back into the pixel range
    )
    source = "Ilyas et al. 2019, arXiv:1807.07978"

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """Takes at most ``queries`` forward passes a sample."""
        p, objective = self.params, for_batch(self.params.loss, batch)
        share, exploration, radius, lr = (0.2, 1.0, 0.1, 100.0) if threat.norm == "linf" else (0.1, 0.01, 0.01, 0.1)
        update = SteepestStep(StepSize(p.step_size, share=share))
        estimator = BanditGradient(rng, p.exploration or exploration, p.radius or radius, p.lr or lr, p.tile, threat.norm)
        return maximize_from_inputs(target, batch, threat, objective, update, (p.queries - 1) // 3, estimator)
