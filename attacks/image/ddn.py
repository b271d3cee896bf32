"""DDN"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from robustkd.attacks.image.losses import LossName
from robustkd.attacks.image.nearest import Nearest, Question, Seekers, minimum_norm
from robustkd.attacks.image.objective import for_batch
from robustkd.contracts import Attack, Params
from robustkd.scoring.distances import distance, per_sample


class DDNParams(Params):
    steps: int = Field(100, ge=1)
    gamma: float = Field(0.05, gt=0, lt=1)
    init_norm: float = Field(1.0, gt=0)
    loss: LossName = "ce"


class DDN(Attack):
    Params = DDNParams
    kind = "minimum-norm"
    norms = ("l2",)
    goals = ("untargeted", "targeted")

    def run(self, target, batch, threat, rng):
        p = self.params
        objective = for_batch(p.loss, batch)

        def search(question: Question, rows: Tensor) -> Nearest:
            def query(x, asked):
                return question.oracle.climb(x, asked, objective)

            return question.seek(rows, DDNStep(p.steps, p.gamma, p.init_norm, question.bounds), p.steps, query=query)

        return minimum_norm(target, batch, "l2", search)


@dataclass(frozen=True)
class DDNStep:
    steps: int
    gamma: float
    init_norm: float
    bounds: tuple[float, float]

    def step(self, now: Seekers, t: int) -> Tensor:
        if t == 0:
            now.memory["eps"] = torch.full_like(now.best, self.init_norm)
        delta = now.x - now.clean
        eps = now.memory["eps"] if t == 0 else now.memory["eps"] * torch.where(now.adversarial, 1 - self.gamma, 1 + self.gamma)
        if t == 0:
            eps = eps * (1 + self.gamma)
        now.memory["eps"] = eps
        rate = 0.01 + 0.99 * (1 + math.cos(math.pi * t / self.steps)) / 2
        delta = delta + rate * now.gradient / per_sample(distance(now.gradient, "l2"), delta).clamp_min(1e-30)
        delta = delta * per_sample(eps / distance(delta, "l2").clamp_min(1e-30), delta)
        return (now.clean + delta).clamp(*self.bounds)
