"""Slowdown: how much an attacker makes an adaptive network compute.

    success:     C(x') > B                         C, the multiply-adds that the rule spends; B, a budget
    ratio:       sum_i C(x'_i) / sum_i C(x_i)      with the interval of a ratio of two means over the same images

A slowdown attack is an attack on the classifier with the classes "within the budget" and "beyond it" (``ComputationTarget``), whose margin
is positive exactly where the budget is exceeded: for exits, the threshold less the largest log-odds of the exits within the budget. So
any attack on classifiers can be one. Beside it stand

- DeepSloth's loss, which moves all early exits towards the uniform distribution, by the same attack with as many steps,
- a random search (Square) of as many passes, counted forward and backward, and
- the attack with any change allowed, and with the geometric mean of this and the budget, since steps that are too long jump over what is
  unsure: they say whether it can find anything.

An attacker who fails leaves the image as it is: what an image costs under attack is the larger of both. The number is not credible where
random search slows images that the gradient left (it is masked), or where the attack fails far beyond the bound.

Source: Hong, Kaya, Modoranu, Dumitras: A panda? No, it's a sloth: slowdown attacks on adaptive multi-exit neural network inference
(ICLR 2021), arXiv:2010.02432; the authors' code was not read. The direct margin, the random search and the interval are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from robustkd.analyses.attacked import attack_field, right
from robustkd.analyses.members import first_samples, parts
from robustkd.attacks.image.wrappers.wrapper import AttackSpec
from robustkd.contracts import Analysis, Attack, Batch, Params, Table, Target, TargetError, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch
from robustkd.scoring.distances import distance, per_sample, within
from robustkd.scoring.intervals import ratio_interval, wilson
from robustkd.targets.sub_network import ComputationTarget, UnsureExitsTarget, adaptive_network

if TYPE_CHECKING:
    from torch import Tensor

    from robustkd.models.sub_networks import AdaptiveNetwork

_MOST_LEVELS = 8
"""So many different costs have a column each; of more the range is cut in four."""
_LEFT = 0.002
"""Random search may slow this share of the images that the gradient left, or one image, before that is held against the gradient."""
_CAN = 0.9
"""Far beyond the bound an attack is to slow this share of the images. Not all: long steps may end where another class is sure."""


class SlowdownParams(Params):
    attack: AttackSpec = attack_field(
        "a gradient attack on the margin, which is exact; it is run on each loss", steps=40, loss="margin"
    )
    budget: float | None = Field(
        None, gt=0, lt=1, description="B, as a share of all multiply-adds; default: an attack succeeds where all is computed"
    )
    samples: int = Field(500, ge=2, description="images at most")


class Slowdown(Analysis):
    """What an adaptive network computes under attack, to what it computes of clean images."""

    Params = SlowdownParams
    inputs = "images"
    source = "Hong et al. 2021, arXiv:2010.02432"

    def run(self, target: Target, batch: Batch, threat: ThreatModel, seed: int) -> Table:
        """A row for the clean images and for each attack, the shares of images by what they cost first; ``metrics``: the ratio of all
        attacks within the bound together, with its interval, and the share of images that they slow.

        Raises:
            TargetError: the network spends the same on every image, no image can exceed the budget, or the threat model is no norm.
        """
        p, network = self.params, adaptive_network(target)
        budgets = network.budgets
        budget = float(budgets[-2]) if p.budget is None else p.budget * budgets[-1]
        if budget < budgets[0]:
            raise TargetError(
                f"every image costs more than the budget {p.budget:g} of slowdown",
                fix=f"give at least {budgets[0] / budgets[-1]:.3f}",
            )
        attack = p.attack.make()
        if reason := attack.refusal(threat):
            raise TargetError(f"the attack of slowdown {reason}", fix="use a threat model in a norm, or another attack")
        samples = first_samples(batch, p.samples)
        slow = _Slowing(network, samples, seed)
        kind, view = p.attack.kind, ComputationTarget(target, budget)
        gradient, passes = slow.attacked(f"{kind}, margin", view, attack, threat)
        rows = [gradient]
        if network.has_exits:
            rows.append(slow.attacked(f"{kind}, DeepSloth's loss", UnsureExitsTarget(target), attack, threat)[0])
        by_gradient = np.max([row.cost for row in rows], axis=0) > budget
        search = AttackSpec.model_validate({"kind": "square", "queries": passes}).make()
        if search.refusal(threat) is None:
            rows.append(slow.attacked("random search", view, search, threat)[0])
        low, high = target.bounds
        whole = float(torch.as_tensor(high - low).max())
        wider = [ThreatModel(norm="linf", eps=eps) for eps in (math.sqrt(whole * min(whole, threat.eps)), whole)]
        unbounded = _dearest("far beyond the bound", [*rows, *(slow.attacked("", view, attack, more)[0] for more in wider)])
        worst = np.max([row.cost for row in rows], axis=0)
        eligible = slow.clean.cost <= budget
        slowed = (worst > budget)[eligible]
        beyond = float(((worst > budget) & ~by_gradient).mean())
        can = float((unbounded.cost > budget).mean())
        shown, levels, full = [slow.clean, *rows, unbounded], _levels(network), budgets[-1]
        metrics = {
            "computation_to_clean": float(worst.mean() / slow.clean.cost.mean()),
            **_ends("computation_to_clean", ratio_interval(worst, slow.clean.cost)),
            "clean_computation": float(slow.clean.cost.mean() / full),
            "slowed": float(slowed.sum() / max(1, len(slowed))),
            **_ends("slowed", wilson(int(slowed.sum()), len(slowed))),
            "slowed_by_search_alone": beyond,
            "slowed_far_beyond": can,
            "slowdown_not_credible": float(beyond > max(1 / len(samples), _LEFT) or can < _CAN),
        }
        return Table(
            caption=f"of {len(samples)} images, the share whose cost is in the column's range (of all {full:,} multiply-adds), and the "
            f"share beyond the budget of {budget / full:.3f}; the mean cost to that of the clean images, with its 95 % interval; and the "
            f"accuracy there. Random search has {passes} passes, as many as the gradient. It is not credible where search slows more than "
            f"{100 * _LEFT:g} % that the gradient leaves, or less than {100 * _CAN:g} % are slowed far beyond the bound",
            rows=[row.name for row in shown],
            columns=[
                *(f"up to {level / full:.2f}" for level in levels),
                "beyond budget",
                "to clean",
                "low",
                "high",
                "accuracy",
            ],
            values=[
                [
                    *_shares(row.cost, levels),
                    float((row.cost > budget).mean()),
                    float(row.cost.mean() / slow.clean.cost.mean()),
                    *ratio_interval(row.cost, slow.clean.cost),
                    float(right(target, row.inputs, samples.labels).float().mean()),
                ]
                for row in shown
            ],
            metrics=metrics,
            parts=len(levels),
        )


@dataclass(frozen=True)
class _Row:
    """What one attack made of the images, and what each costs: at least as much as the clean one."""

    name: str
    inputs: Tensor
    cost: np.ndarray


class _Slowing:
    """Attacks on the cost of the same images.

    Attributes:
        clean: the images as they are.
    """

    def __init__(self, network: AdaptiveNetwork, samples: Batch, seed: int) -> None:
        self._network, self._seed = network, seed
        self._samples = replace(samples, labels=torch.zeros_like(samples.labels), logits=None, draws=None)
        self.clean = _Row("clean", samples.inputs, self._spent(samples.inputs))

    def attacked(self, name: str, view: Target, attack: Attack, threat: ThreatModel) -> tuple[_Row, int]:
        """What the attack makes of the images, and the most passes that it spent on one; distance and cost are measured here."""
        attack.require(view)
        found, passes = [], 0
        for part in parts(self._samples):
            result = attack.run(view, part, threat, SampleRng(self._seed, part.index, "slowdown"))
            moved = distance(result.adversarial - part.inputs, threat.norm)
            allowed = within(moved, threat.eps, threat.norm, part.inputs.shape[1:])
            found.append(torch.where(per_sample(allowed, part.inputs), result.adversarial, part.inputs).detach())
            passes = max(passes, int((result.forwards + result.backwards).max()))
        inputs = torch.cat(found)
        cost = self._spent(inputs)
        dearer = torch.from_numpy(cost >= self.clean.cost).to(inputs.device)
        kept = torch.where(per_sample(dearer, inputs), inputs, self.clean.inputs)
        return _Row(name, kept, np.maximum(cost, self.clean.cost)), passes

    def _spent(self, inputs: Tensor) -> np.ndarray:
        with torch.no_grad():
            found: np.ndarray = torch.cat([self._network.spent(x) for x in inputs.split(256)]).cpu().numpy()
        return found


def _dearest(name: str, rows: Sequence[_Row]) -> _Row:
    """What costs most of each image."""
    inputs, cost = rows[0].inputs, rows[0].cost
    for row in rows[1:]:
        more = torch.from_numpy(row.cost > cost).to(inputs.device)
        inputs, cost = torch.where(per_sample(more, inputs), row.inputs, inputs), np.maximum(row.cost, cost)
    return _Row(name, inputs, cost)


def _ends(name: str, interval: tuple[float, float]) -> dict[str, float]:
    return {f"{name}_low": interval[0], f"{name}_high": interval[1]}


def _levels(network: AdaptiveNetwork) -> list[float]:
    """The costs that have a column each, rising."""
    budgets = network.budgets
    if len(budgets) <= _MOST_LEVELS:
        return [float(cost) for cost in budgets]
    return [budgets[0] + (budgets[-1] - budgets[0]) * quarter / 4 for quarter in range(1, 5)]


def _shares(cost: np.ndarray, levels: list[float]) -> list[float]:
    """Of (N,) costs, the share that is above the level before and at most this one."""
    reached = [float((cost <= level).mean()) for level in levels]
    return [here - before for before, here in zip([0.0, *reached[:-1]], reached, strict=True)]
