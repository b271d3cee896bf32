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
    """The families of corruptions, and their severity or all severities."""

    family: Annotated[tuple[str, ...], BeforeValidator(_listed, json_schema_input_type=str | tuple[str, ...])] = Field(
        ("all",),
        min_length=1,
        description=f"all, or some of {', '.join(GROUPS)}, {', '.join(FAMILIES)}; of several, each image meets the first that breaks it",
    )
    severity: Literal[1, 2, 3, 4, 5, "all"] = Field(3, description="1 (mild) to 5, or all of them in this order")

    @field_validator("family")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        choices = ("all", *GROUPS, *FAMILIES)
        for name in names:
            if name not in choices:
                raise ValueError(f"'{name}' is no corruption: {suggestion(name, choices) or 'known are ' + ', '.join(choices)}")
        return names

    @property
    def families(self) -> tuple[str, ...]:
        """The families that the parameter names, each once."""
        meant = [FAMILIES if name == "all" else GROUPS.get(name, (name,)) for name in self.family]
        return tuple(dict.fromkeys(family for names in meant for family in names))

    @property
    def severities(self) -> tuple[int, ...]:
        """The severities that the parameter names, in ascending order."""
        return SEVERITIES if self.severity == "all" else (self.severity,)


class Corruption(Attack):
    """Common corruptions of images: noise, blur, weather and compression."""

    Params = CorruptionParams
    inputs = "images"
    space = "corruption"
    gradients = False
    iterative = False
    source = "Hendrycks and Dietterich 2019, arXiv:1903.12261"
    loss_family = "none"

    def threat_for(self, threat: ThreatModel) -> ThreatModel:
        """The threat model of corruptions, any image in the pixel range, whatever ``threat`` is."""
        return ThreatModel(budget=Corruptions())

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """Takes one pass for each corruption that an image meets."""
        p, oracle = self.params, Oracle(target, batch)
        adversarial, standing = batch.inputs.clone(), torch.arange(len(batch), device=batch.inputs.device)
        success = torch.zeros_like(standing, dtype=torch.bool)
        with frozen(target.module):
            for severity in p.severities:
                for family in p.families:
                    if not len(standing):
                        break
                    adversarial[standing] = corrupted(batch.inputs[standing], family, severity, rng.select(standing))
                    broken = oracle.is_adversarial(oracle.logits(adversarial[standing], standing), standing)
                    success[standing[broken]] = True
                    standing = standing[~broken]
        return AttackResult(adversarial, success, oracle.forwards, oracle.backwards)
