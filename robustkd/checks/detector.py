"""Whether a classifier's detector was attacked, or the classifier alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from robustkd.contracts import Attack, AttackEvidence, Check, CheckContext, Finding
from robustkd.lazy import torch
from robustkd.scoring.worst_case import worst_case
from robustkd.targets.surrogate import declared_surrogates

if TYPE_CHECKING:
    from torch import Tensor

_LEVELS, _ROUNDING = 255, 1e-3
_BATCH = 256
_SMALL = 0.002


class DetectorNotAttacked(Check):
    """Did an attack reckon with the detector?

    An attack that knows the classifier alone ends where the classifier is fooled, wherever that is for the detector: its number says that
    the attack did not know the detector. Where the target can be differentiated, the attack has to do so; where a stage declares a
    surrogate for its gradient, with the surrogate.

    A detector may also see nothing but that an input is no image of 8 bits, which no attack's is by itself and an attacker can see to. So
    what the attacks found is shown to the target once more, each change rounded towards the clean image to steps of 1/255.
    """

    regions = ("given", "chosen")
    severity = "severe"
    rule = (
        "the target rejects inputs, and no attack of the campaign looks for inputs that are wrong and accepted: by the gradient where "
        "there is one, and with the surrogates where a stage declares one; or, rounded to 8 bits, what the attacks found breaks more than "
        "0.2 % of the samples, and more than one, that stand otherwise"
    )
    cost = "one forward pass a sample and attack"
    source = "Carlini & Wagner 2017, Adversarial examples are not easily detected, arXiv:1705.07263; Tramer et al. 2020, arXiv:2002.08347"

    def run(self, context: CheckContext) -> Finding:
        """Look at what the campaign's attacks know."""
        target = context.target
        if not target.rejects:
            return self.not_applicable("the target rejects nothing")
        gradients, cut = "gradients" in target.capabilities, sorted(declared_surrogates(target))
        adaptive = [found.name for found in context.headline if _reckons(found, gradients, bool(cut))]
        broken, n = _broken_in_8_bits(context)
        if adaptive and broken > 1 and broken / n > _SMALL:
            return self.finding(
                True,
                fix="the detector sees that an input is not of 8 bits: round inputs in front of classifier and detector",
                explanation=f"rounded to 8 bits, as images are stored, what the attacks found is wrong and accepted on {broken} of the "
                f"{n} samples that they left standing",
                adaptive=adaptive,
                broken_in_8_bits=broken,
            )
        stages = f", whose stage {cut[0]} has no gradient of its own" if cut else ""
        return self.finding(
            not adaptive,
            fix="add {kind: bpda, attack: {kind: apgd-dlr}}"
            if cut
            else "add an attack such as apgd-dlr, which knows the detector",
            explanation=f"{', '.join(adaptive)} attacks classifier and detector together"
            if adaptive
            else f"no attack of the campaign is on classifier and detector together{stages}",
            adaptive=adaptive,
            broken_in_8_bits=broken,
        )


def _broken_in_8_bits(context: CheckContext) -> tuple[int, int]:
    """How many of the samples that every attack left standing fall to one of its inputs once it is rounded, and how many stand."""
    kept = [found for found in context.headline if found.adversarial is not None and len(found.adversarial)]
    if not kept:
        return 0, 0
    standing = worst_case(found.standing for found in context.headline) > 0
    broken = np.zeros(len(standing), dtype=bool)
    for found in kept:
        assert found.adversarial is not None
        rows = np.flatnonzero(standing[: len(found.adversarial)])
        for part in np.array_split(rows, max(1, len(rows) // _BATCH)):
            batch = context.batch.select(torch.as_tensor(part, device=context.batch.inputs.device))
            if not len(batch) or not _is_of_8_bits(batch.inputs):
                continue
            moved = torch.as_tensor(found.adversarial[part]).to(batch.inputs) - batch.inputs
            rounded = batch.inputs + (moved * _LEVELS).trunc() / _LEVELS
            with torch.no_grad():
                broken[part] |= batch.reached(context.target(rounded).argmax(1)).cpu().numpy()
    return int(broken.sum()), int(standing.sum())


def _is_of_8_bits(inputs: Tensor) -> bool:
    levels = inputs * _LEVELS
    return bool((levels - levels.round()).abs().amax() < _ROUNDING)


def _reckons(found: AttackEvidence, gradients: bool, cut: bool) -> bool:
    attack = found.attack
    if not isinstance(attack, Attack) or not attack.knows_rejection:
        return False
    return not gradients or (found.gradients and (attack.uses_surrogates or not cut))
