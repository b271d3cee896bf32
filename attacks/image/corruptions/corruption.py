"""Common corruptions as attacks: noise, blur, weather and files, in place of a worst case.

    x' = c(x),  c of one family and severity: natural robustness
    x' = the first of several c(x) that is misclassified: nobody is to be deceived by any of them

Nothing is learnt of the model but its answer, and no norm is respected: any image in the pixel range is allowed, so the threat model is
a space of its own and never part of the campaign's worst case.

Good for natural robustness beside the adversarial one. It says nothing about an adversary: robustness to one kind is not
robustness to the other.

Source: Hendrycks, Dietterich: Benchmarking neural network robustness to common corruptions and perturbations (ICLR 2019).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from robustkd.attacks.image.corruptions.corruption_families import FAMILIES, GROUPS, SEVERITIES, corrupted
from robustkd.attacks.image.engine.oracle import Oracle, frozen
from robustkd.contracts import Attack, AttackResult, Batch, Corruptions, Params, Target, ThreatModel, suggestion
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch


def _listed(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


class CorruptionParams(Params):
    """Parameters of ``corruption``."""

    family: Annotated[tuple[str, ...], BeforeValidator(_listed, json_schema_input_type=str | tuple[str, ...])] = Field(
        ("all",),
        min_length=1,
        description=f"all, or some of {', '.join(GROUPS)}, {', '.join(FAMILIES)}; of several, each image meets the first that breaks it",
    )
    severity: Literal[1, 2, 3, 4, 5, "all"] = Field(3, description="1 (mild) to 5, or all of them in this order")

    @field_validator("family")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        known = ("all", *GROUPS, *FAMILIES)
        for name in names:
            if name not in known:
                raise ValueError(f"'{name}' is no corruption: {suggestion(name, known) or 'known are ' + ', '.join(known)}")
        return names

    @property
    def families(self) -> tuple[str, ...]:
        """The families meant, each once."""
        meant = [FAMILIES if name == "all" else GROUPS.get(name, (name,)) for name in self.family]
        return tuple(dict.fromkeys(family for names in meant for family in names))

    @property
    def severities(self) -> tuple[int, ...]:
        """The severities meant."""
        return SEVERITIES if self.severity == "all" else (self.severity,)


class Corruption(Attack):
    """Images as weather, cameras and files leave them."""

    Params = CorruptionParams
    space = "corruption"
    gradients = False
    iterative = False
    source = "Hendrycks and Dietterich 2019, arXiv:1903.12261"

    @property
    def loss_family(self) -> Literal["none"]:
        """It climbs nothing."""
        return "none"

    def threat_for(self, threat: ThreatModel) -> ThreatModel:
        """Any image in the pixel range, whatever is asked for."""
        return ThreatModel(budget=Corruptions())

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """One pass for each corruption that an image meets."""
        p, oracle = self.params, Oracle(target, batch)
        adversarial, left = batch.inputs.clone(), torch.arange(len(batch), device=batch.inputs.device)
        broken = torch.zeros_like(left, dtype=torch.bool)
        with frozen(target.module):
            for severity in p.severities:
                for family in p.families:
                    if not len(left):
                        break
                    adversarial[left] = corrupted(batch.inputs[left], family, severity, rng.select(left))
                    now = oracle.is_adversarial(oracle.logits(adversarial[left], left), left)
                    broken[left[now]] = True
                    left = left[~now]
        return AttackResult(adversarial, broken, oracle.forwards, oracle.backwards)
