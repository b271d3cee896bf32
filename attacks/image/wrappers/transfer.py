"""Transfer: adversarial examples are made on other models, and tried on the target.

    for each surrogate f_s and each attack A:   x' = A(f_s, x),   broken if the target is wrong at x'

A sample survives only if all of them fail. On a surrogate nothing counts as adversarial: an attack that stopped at the first
point that fools the surrogate would leave most of its budget, and most of what transfers, unused. So it goes on to its last step
and hands over the point with the highest loss. (A minimum-norm attack hands over the closest adversarial point, as it always
does, and that transfers badly.)

Good as the attacker without access, and to expose masked gradients: examples made on the surrogate need no gradient of the
target. Alone it says little, since most examples do not transfer: its number is usually far above the white-box one.

Source: Papernot, McDaniel, Goodfellow: Transferability in machine learning (2016), arXiv:1605.07277; the rule that all must fail,
and several surrogates and losses: Yang et al.: DVERGE (NeurIPS 2020), arXiv:2009.14720, section 4.2.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Self, get_args

from pydantic import BeforeValidator, Field

from robustkd.attacks.image.engine.ascent import Search, SearchResult
from robustkd.attacks.image.engine.cascade import usable
from robustkd.attacks.image.engine.objective import for_batch
from robustkd.attacks.image.engine.oracle import frozen
from robustkd.attacks.image.wrappers.wrapper import AttackSpec
from robustkd.contracts import (
    Arrays,
    Attack,
    AttackResult,
    BaseTarget,
    Batch,
    Capabilities,
    Params,
    Target,
    TargetError,
    TargetRef,
    ThreatModel,
    Traits,
)
from robustkd.contracts.random import SampleRng
from robustkd.contracts.region import Placing
from robustkd.contracts.target import WrappedTarget
from robustkd.lazy import torch
from robustkd.scoring.distances import per_sample
from robustkd.scoring.probabilities import log_of_probabilities, outputs_of

if TYPE_CHECKING:
    from torch import Tensor


class Surrogate(WrappedTarget):
    """A model that adversarial examples are made on. No point of it counts as adversarial, whatever it predicts.

    Where its first answers are probabilities, the logarithm of all of them is climbed.
    """

    never_adversarial = True

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self._log: bool | None = None

    def __call__(self, inputs: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K) logits."""
        outputs = super().__call__(inputs)
        if self._log is None and len(outputs):
            self._log = outputs_of(outputs.detach()) == "probabilities"
        return log_of_probabilities(outputs) if self._log else outputs


def _several(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


class TransferParams(Params):
    """The surrogates, and the attacks that are run on each of them."""

    surrogates: Annotated[tuple[TargetRef, ...], BeforeValidator(_several, json_schema_input_type=str | tuple[str, ...])] = (
        Field(min_length=1, description="the defenses whose models the examples are made on, one or several")
    )
    attacks: Annotated[
        tuple[AttackSpec, ...], BeforeValidator(_several, json_schema_input_type=AttackSpec | tuple[AttackSpec, ...])
    ] = Field(
        ({"kind": "pgd", "steps": 40},),
        validate_default=True,
        min_length=1,
        description="the attacks that make them: each a kind and its parameters, one or several",
    )


class Transfer(Attack):
    """Attacks on surrogates, judged on the target, whose gradient is not used: what a black-box attacker with models of his own does.

    The passes are those on the surrogates and one forward pass on the target for each try (and one for the clean image).
    """

    Params = TransferParams
    version = "2"  # 1 refused what rounding carried over a small eps
    norms = ("linf", "l2", "l1", "l0")
    goals = ("untargeted", "targeted")
    gradients = False
    knows_rejection = False
    source = "Papernot et al. 2016, arXiv:1605.07277; Yang et al. 2020, arXiv:2009.14720"

    def __init__(self, params: Any = None) -> None:
        super().__init__(params)
        self.inner: list[Attack] = [spec.make() for spec in self.params.attacks]
        self.fitted: dict[tuple[str, int], Attack] = {}
        self.version = "/".join([type(self).version, *(attack.version for attack in self.inner)])

    def version_for(self, threat: ThreatModel) -> str:
        """Its own version and those of all the attacks inside: its numbers change when those of any do."""
        return "/".join([type(self).version, *(attack.version_for(threat) for attack in self.inner)])

    def with_targets(self, targets: Mapping[str, BaseTarget]) -> Self:
        """A copy that holds ``targets``, also for the attacks inside, which may refer to targets too."""
        holding = copy(super().with_targets(targets))
        holding.inner = [attack.with_targets(targets) for attack in self.inner]
        return holding

    @property
    def traits(self) -> Traits:
        """It is for images alone, or for features in one range, where one of the attacks is, and learns where one does; it respects the
        regions that all respect.
        """
        images = any(attack.traits.inputs == "images" for attack in self.inner)
        one = any(attack.traits.ranges == "one" for attack in self.inner)
        regions = tuple(place for place in get_args(Placing) if all(place in attack.traits.regions for attack in self.inner))
        learns = any(attack.traits.learns for attack in self.inner)
        return replace(
            super().traits,
            inputs="images" if images else "any",
            ranges="one" if one else "any",
            regions=regions,
            learns=learns,
        )

    def others(self) -> dict[str, Capabilities]:
        """Every surrogate must have what all the attacks need; the attacks may refer to further targets."""
        found: dict[str, Capabilities] = {}
        for attack in self.inner:
            needed = dict.fromkeys(self.params.surrogates, frozenset(attack.missing(frozenset())))
            for name, needs in [*needed.items(), *attack.others().items()]:
                found[name] = found.get(name, frozenset()) | needs
        return found

    def refusal(self, threat: ThreatModel) -> str | None:
        """The refusal of the first inner attack that has one; None when all of them can be used."""
        return next((reason for attack in self.inner if (reason := attack.refusal(threat))), None)

    def fit(self, target: Target, data: Arrays, threat: ThreatModel, rng: SampleRng) -> Self:
        """A copy of this attack in which those that learn have learnt on each surrogate; the target is not asked."""
        holding = copy(self)
        holding.fitted = {
            (name, number): attack.fit(surrogate, data, threat, rng.fork(f"{name}/{number}"))
            for name, surrogate in self._surrogates().items()
            for number, attack in enumerate(self.inner)
            if attack.traits.learns
        }
        return holding

    def _surrogates(self) -> dict[str, Surrogate]:
        return {name: Surrogate(self.target(name, Target)) for name in self.params.surrogates}

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """Each try sees only the samples that every earlier one left standing.

        Raises:
            UsageError: a surrogate was not handed over.
            TargetError: a surrogate has other classes than the target, or not what an attack needs.
        """
        surrogates = self._surrogates()
        for surrogate, attack in itertools.product(surrogates.values(), self.inner):
            attack.require(surrogate)
        objective = for_batch("margin", batch)
        with frozen(target.module):
            search = Search.begin(target, batch, threat)
            for name, surrogate in surrogates.items():
                for number, attack in enumerate(self.inner):
                    rows = search.standing
                    if not len(rows):
                        break
                    # The logits in the batch are the target's, not the surrogate's.
                    part = replace(batch.select(rows), logits=None)
                    able = self.fitted.get((name, number), attack)
                    result = able.run(surrogate, part, threat, rng.select(rows).fork(f"{name}/{number}"))
                    search.oracle.forwards[rows] += result.forwards
                    search.oracle.backwards[rows] += result.backwards
                    inside = per_sample(usable(attack, result, part, threat), part.inputs)
                    x = torch.where(inside, result.adversarial, part.inputs)
                    logits = search.oracle.logits(x, rows)
                    _same_classes(name, surrogate, logits)
                    broken = search.oracle.is_adversarial(logits, rows)
                    search.record(rows, SearchResult(x, objective(logits, rows).to(x.dtype), broken))
            return search.result()


def _same_classes(name: str, surrogate: Target, logits: Tensor) -> None:
    if (classes := surrogate.num_classes - surrogate.rejects) != logits.shape[1]:
        raise TargetError(
            f"surrogate '{name}' has {classes} classes, the target {logits.shape[1]}",
            fix="name another surrogate",
        )
