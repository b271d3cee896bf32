"""AutoAttack: attacks of different kinds in a row, each on the samples that all earlier ones left standing.

    standard   APGD-CE, APGD-T (9 targets), FAB-T (9 targets), Square
    plus       APGD-CE, APGD-DLR, FAB (5 restarts each), Square, APGD-T, FAB-T
    rand       APGD-CE, APGD-DLR, on the mean of 20 passes: for randomised defenses
    adaptive   the conclusion of standard for a fifth to a half of its passes (``adaptive.py``); behind it on networks that jump

In l0 they are others, the same for ``standard`` and, with fewer steps and a random search that gives up, for ``adaptive``:

    standard   sPGD unprojected, sPGD projected, sigma-zero, Sparse-RS
    plus       those with 5 restarts
    rand       sPGD unprojected, sPGD projected, on the mean of 20 passes

For campaigns it is one attack: a sample stands when it withstood all of them.

Good as the common judge of deterministic, differentiable networks, without anything to tune. Randomised defenses need
``rand`` or ``eot``; stages without a gradient leave it Square alone (``bpda`` around an attack does better); a defense that
was built against its parts needs an attack of its own.

Source: Croce & Hein: Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks (ICML
2020), section 5; the versions plus and rand are those of the authors' package. In l0, Zhong et al.: Towards efficient training and
evaluation of robust models against l0 bounded adversarial perturbations (ICML 2024), section 4.3: their Sparse-AutoAttack is the
two sPGD and Sparse-RS, with 10,000 passes each; sigma-zero and the lengths are ours.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import Field

from robustkd.attacks.image.autoattack.adaptive import Budgets, adaptive
from robustkd.attacks.image.black_box.square import SQUARE_REVISIONS, Square, SquareParams
from robustkd.attacks.image.engine.ball import STEEPEST_REVISIONS
from robustkd.attacks.image.engine.cascade import cascade
from robustkd.attacks.image.engine.target_classes import ClassOrder
from robustkd.attacks.image.gradient.apgd import APGDCE, APGDDLR, APGDT, APGDParams, APGDTParams
from robustkd.attacks.image.minimum_norm.fab import FAB, FABParams
from robustkd.attacks.image.sparse.sigma_zero import SigmaZero, SigmaZeroParams
from robustkd.attacks.image.sparse.sparse_rs import SparseRS, SparseRSParams
from robustkd.attacks.image.sparse.spgd import SPGD, SPGDParams
from robustkd.attacks.image.wrappers.eot import MeanTarget
from robustkd.contracts import Attack, AttackResult, Batch, Params, Target, ThreatModel, Traits
from robustkd.contracts.params import AddedLater
from robustkd.contracts.random import SampleRng

_LOG = logging.getLogger(__name__)
_OF_SPGD = {"l0": 1}  # its version 2
_OF_STANDARD = {"l1": SQUARE_REVISIONS["l1"] + 1}  # those of its Square, and that of APGD's starts
_OF_ADAPTIVE = {"l1": STEEPEST_REVISIONS["l1"] + 2}  # those of its steps, that of its Square and that of APGD's starts
Version = Literal["standard", "plus", "rand", "adaptive"]


class AutoAttackParams(Params):
    """Parameters of ``autoattack``; the defaults are the authors'."""

    version: Version = Field("standard", description="which attacks: standard, plus, rand, adaptive")
    steps: int = Field(
        100, ge=1, description="steps of each run of APGD and FAB; in l0 a tenth of those of sPGD and sigma-zero"
    )
    targets: int = Field(9, ge=1, description="wrong classes that the targeted attacks aim at, at most all of them")
    order: Annotated[ClassOrder | None, AddedLater()] = Field(
        None,
        description="of these classes: logits (highest), malt (nearest boundaries); default: malt in adaptive, else logits",
    )
    queries: int = Field(5000, ge=1, description="of Square, or of Sparse-RS")
    samples: int = Field(20, ge=1, description="passes that make up one query in version rand")
    thorough: Annotated[bool, AddedLater()] = Field(
        True, description="in version adaptive: run APGD-T and Square in full on what stands next to the boundary"
    )


class AutoAttack(Attack):
    """The ensemble of parameter-free attacks, run one after the other."""

    Params = AutoAttackParams
    version = "4"
    revisions = MappingProxyType({**_OF_STANDARD, **_OF_SPGD})
    norms = ("linf", "l2", "l1", "l0")
    goals = ("untargeted", "targeted")
    regions = ("given",)
    source = "Croce & Hein 2020, arXiv:2003.01690; l0: Zhong et al. 2024, arXiv:2405.05075"
    loss_family = "margin"  # most of its attacks maximize margins

    def __init__(self, params: AutoAttackParams | None = None) -> None:
        super().__init__(params)
        if self.params.version == "adaptive":
            # 4 had neither MALT's order nor the last stages. The numbers of the other versions are as they were.
            self.version = "5"
            self.revisions = MappingProxyType({**_OF_ADAPTIVE, **_OF_SPGD})

    @property
    def traits(self) -> Traits:
        """The traits of the class; version ``rand`` averages over passes."""
        return replace(super().traits, averages=self.params.version == "rand")

    def refusal(self, threat: ThreatModel) -> str | None:
        """Why this attack cannot be used under ``threat``: for itself, or because none of its stages can."""
        if reason := super().refusal(threat):
            return reason
        reasons = [attack.refusal(threat) for _, attack in self.stages(threat)]
        return reasons[0] if all(reasons) else None

    def stages(self, threat: ThreatModel, steps: int | None = None, *, enough: float | None = None) -> list[tuple[str, Attack]]:
        """The attacks of the version, by name, in order. Towards a given class, APGD-DLR takes the place of APGD-T.

        Those of ``adaptive`` are those of ``standard``.

        Args:
            threat: the budget and the goal.
            steps: in place of the parameter.
            enough: where FAB may stop.
        """
        p = self.params
        if threat.norm == "l0":
            return self._in_l0(enough)
        steps = steps or p.steps
        restarts = 5 if p.version == "plus" else 1
        entropy = ("apgd-ce", APGDCE(APGDParams(steps=steps, restarts=restarts)))
        ratio = ("apgd-dlr", APGDDLR(APGDParams(steps=steps, restarts=restarts)))
        order: ClassOrder = p.order or ("malt" if p.version == "adaptive" else "logits")
        each_class = ("apgd-t", APGDT(APGDTParams(steps=steps, targets=p.targets, order=order)))
        fab = ("fab", FAB(FABParams(steps=steps, restarts=restarts, enough=enough)))
        fab_t = ("fab-t", FAB(FABParams(steps=steps, targeted=True, targets=p.targets, order=order, enough=enough)))
        square = ("square", Square(SquareParams(queries=p.queries)))
        standard: list[tuple[str, Attack]] = [entropy, each_class if threat.goal == "untargeted" else ratio, fab_t, square]
        stages: dict[Version, list[tuple[str, Attack]]] = {
            "standard": standard,
            "plus": [entropy, ratio, fab, square, *([each_class, fab_t] if threat.goal == "untargeted" else [])],
            "rand": [entropy, ratio],
            "adaptive": standard,
        }
        version: Version = p.version
        return stages[version]

    def _in_l0(self, enough: float | None) -> list[tuple[str, Attack]]:
        p = self.params
        light = p.version == "adaptive"
        steps, restarts = (2 if light else 10) * p.steps, 5 if p.version == "plus" else 1
        gradients: list[tuple[str, Attack]] = [
            ("spgd", SPGD(SPGDParams(steps=steps, restarts=restarts))),
            ("spgd-projected", SPGD(SPGDParams(steps=steps, restarts=restarts, projected=True))),
        ]
        if p.version == "rand":
            return gradients
        return [
            *gradients,
            ("sigma-zero", SigmaZero(SigmaZeroParams(steps=steps, enough=enough))),
            ("sparse-rs", SparseRS(SparseRSParams(queries=p.queries, restarts=restarts, give_up=light))),
        ]

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """Takes the passes of all stages that a sample went through. On inputs that are no images, and where only a part of the image may
        change, those that can do it are run, and the log names the others.
        """
        p = self.params
        target = target.in_precision("full")  # ``adaptive`` goes by differences that bfloat16 does not show
        one_budget = batch.eps is None and threat.eps > 0
        stages = self.stages(threat, enough=threat.eps if one_budget else None)  # within the budget, closer is no use
        reasons = [attack.unfit(target.input_shape) or attack.refusal(threat) for _, attack in stages]
        if left_out := [f"{name}, which {reason}" for (name, _), reason in zip(stages, reasons, strict=True) if reason]:
            _LOG.warning("%s is run without %s", self.name, "; ".join(left_out))
            able = [stage for stage, reason in zip(stages, reasons, strict=True) if not reason]
            return cascade(able, target, batch, threat, rng)
        if p.version == "adaptive" and threat.norm != "l0":
            # Where gradients mislead, random search breaks most: it comes first.
            standard, light = stages[::-1], self.stages(threat, max(1, p.steps // 5))[:2]
            budgets = Budgets(p.steps, p.targets, p.queries, p.order or "malt")
            thorough = [stages[1], stages[3]] if p.thorough else []  # APGD towards classes, and Square
            return adaptive(target, batch, threat, rng, budgets, light=light, standard=standard, thorough=thorough)
        if p.version != "rand":
            return cascade(stages, target, batch, threat, rng)
        result = cascade(stages, MeanTarget(target, p.samples), batch, threat, rng)
        return replace(result, forwards=p.samples * result.forwards, backwards=p.samples * result.backwards)
