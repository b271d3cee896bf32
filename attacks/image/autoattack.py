"""AutoAttack: attacks of different kinds in a row, each on the samples that all earlier ones left standing.

    standard   APGD-CE, APGD-T (9 targets), FAB-T (9 targets), Square
    plus       APGD-CE, APGD-DLR, FAB (5 restarts each), Square, APGD-T, FAB-T
    rand       APGD-CE, APGD-DLR, on the mean of 20 passes: for randomised defenses
    adaptive   the conclusion of ``standard`` at a fraction of its passes: see ``adaptive``

For campaigns it is one attack: a sample stands when it withstood all of them.

Source: Croce & Hein: Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks (ICML
2020), section 5; the versions plus and rand are those of the authors' package.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from robustkd.attacks.image.adaptive import adaptive
from robustkd.attacks.image.apgd import APGDCE, APGDDLR, APGDT, APGDParams, APGDTParams
from robustkd.attacks.image.ascent import Found, Search
from robustkd.attacks.image.eot import MeanTarget
from robustkd.attacks.image.fab import FAB, FABParams
from robustkd.attacks.image.square import Square, SquareParams
from robustkd.attacks.oracle import frozen
from robustkd.contracts import Attack, AttackResult, Batch, Params, Target, ThreatModel
from robustkd.contracts.attack import LossFamily
from robustkd.contracts.random import SampleRng
from robustkd.scoring.distances import distance, per_sample

Version = Literal["standard", "plus", "rand", "adaptive"]


class AutoAttackParams(Params):
    """Parameters of ``autoattack``; the defaults are the authors'."""

    version: Version = Field("standard", description="which attacks: standard, plus, rand, adaptive")
    steps: int = Field(100, ge=1, description="steps of each run of APGD and FAB")
    targets: int = Field(9, ge=1, description="wrong classes that the targeted attacks aim at, at most all of them")
    queries: int = Field(5000, ge=1, description="of Square")
    samples: int = Field(20, ge=1, description="passes that make up one query in version rand")


class AutoAttack(Attack):
    """The ensemble of parameter-free attacks."""

    Params = AutoAttackParams
    norms = ("linf", "l2", "l1")
    source = "Croce & Hein 2020, arXiv:2003.01690"

    @property
    def loss_family(self) -> LossFamily:
        """Most of its attacks climb margins."""
        return "margin"

    def stages(self) -> list[tuple[str, Attack]]:
        """The attacks of the version, by name, in order."""
        p = self.params
        restarts = 5 if p.version == "plus" else 1
        entropy = ("apgd-ce", APGDCE(APGDParams(steps=p.steps, restarts=restarts)))
        ratio = ("apgd-dlr", APGDDLR(APGDParams(steps=p.steps, restarts=restarts)))
        targeted = ("apgd-t", APGDT(APGDTParams(steps=p.steps, targets=p.targets)))
        fab = ("fab", FAB(FABParams(steps=p.steps, restarts=restarts)))
        fab_t = ("fab-t", FAB(FABParams(steps=p.steps, targeted=True, targets=p.targets)))
        square = ("square", Square(SquareParams(queries=p.queries)))
        return {
            "standard": [entropy, targeted, fab_t, square],
            "plus": [entropy, ratio, fab, square, targeted, fab_t],
            "rand": [entropy, ratio],
        }[p.version]

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """The sum of the passes of all stages that a sample went through."""
        p = self.params
        if p.version == "adaptive":
            return adaptive(target, batch, threat, rng)
        if p.version == "rand":
            target = MeanTarget(target, p.samples)
        with frozen(target.module):
            search = Search.begin(target, batch, threat)
            for name, attack in self.stages():
                ...
        return result
