"""AutoAttack: attacks of different kinds in a row, each on the samples that all earlier ones left standing.

    standard   APGD-CE, APGD-T (9 targets), FAB-T (9 targets), Square
    plus       APGD-CE, APGD-DLR, FAB (5 restarts each), Square, APGD-T, FAB-T
    rand       APGD-CE, APGD-DLR, on the mean of 20 passes: for randomised defenses

For campaigns it is one attack: a sample stands when it withstood all of them.

Source: Croce & Hein: Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks (ICML
2020), section 5; the versions plus and rand are those of the authors' package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field

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
from robustkd.scoring.judging import TOLERANCE

Version = Literal["standard", "plus", "rand"]


class AutoAttackParams(Params):
    """Parameters of ``autoattack``; the defaults are the authors'."""

    version: Version = Field("standard", description="which attacks: standard, plus, rand")
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

    def stages(self, threat: ThreatModel) -> list[tuple[str, Attack]]:
        """The attacks of the version, by name, in order. Towards a given class, APGD-DLR takes the place of APGD-T."""
        p = self.params
        restarts = 5 if p.version == "plus" else 1
        entropy = ("apgd-ce", APGDCE(APGDParams(steps=p.steps, restarts=restarts)))
        ratio = ("apgd-dlr", APGDDLR(APGDParams(steps=p.steps, restarts=restarts)))
        each_class = ("apgd-t", APGDT(APGDTParams(steps=p.steps, targets=p.targets)))
        enough = threat.eps or None  # closer is no use here
        fab = ("fab", FAB(FABParams(steps=p.steps, restarts=restarts, enough=enough)))
        fab_t = ("fab-t", FAB(FABParams(steps=p.steps, targeted=True, targets=p.targets, enough=enough)))
        square = ("square", Square(SquareParams(queries=p.queries)))
        stages: dict[Version, list[tuple[str, Attack]]] = {
            "standard": [entropy, each_class if threat.goal == "untargeted" else ratio, fab_t, square],
            "plus": [entropy, ratio, fab, square, *([each_class, fab_t] if threat.goal == "untargeted" else [])],
            "rand": [entropy, ratio],
        }
        version: Version = p.version
        return stages[version]

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """The passes of all stages that a sample went through."""
        p = self.params
        if p.version != "rand":
            return cascade(self.stages(threat), target, batch, threat, rng)
        found = cascade(self.stages(threat), MeanTarget(target, p.samples), batch, threat, rng)
        return replace(found, forwards=p.samples * found.forwards, backwards=p.samples * found.backwards)


def cascade(
    stages: Sequence[tuple[str, Attack]], target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng
) -> AttackResult:
    """Attacks in a row, each on the samples that all earlier ones left standing.

    What is returned for a sample that withstood all of them is the first one's best try. There is no common loss: those of
    different attacks cannot be compared.
    """
    with frozen(target.module):
        search = Search.begin(target, batch, threat)
        batch = replace(batch, logits=search.clean)
        for name, attack in stages:
            rows = search.standing
            if not len(rows):
                break
            part = batch.select(rows)
            found = attack.run(target, part, threat, rng.select(rows).fork(name))
            search.oracle.forwards[rows] += found.forwards
            search.oracle.backwards[rows] += found.backwards
            # A minimum-norm attack may come back from further away than the budget reaches.
            inside = distance(found.adversarial - part.inputs, threat.norm) <= threat.eps * (1 + TOLERANCE)
            x = torch.where(per_sample(inside, part.inputs), found.adversarial, part.inputs)
            search.record(rows, Found(x, torch.zeros_like(search.value[rows]), found.success & inside))
        return replace(search.result(), loss=None)
