"""Whether a classifier's detector was attacked, or the classifier alone."""

from __future__ import annotations

from robustkd.contracts import Attack, AttackEvidence, Check, CheckContext, Finding
from robustkd.targets.surrogate import declared_surrogates


class DetectorNotAttacked(Check):
    """Did an attack reckon with the detector?

    An attack that knows the classifier alone ends where the classifier is fooled, wherever that is for the detector: its number says that
    the attack did not know the detector. Where the target can be differentiated, the attack has to do so; where a stage declares a
    surrogate for its gradient, with the surrogate.
    """

    regions = ("given", "chosen")
    severity = "severe"
    rule = (
        "the target rejects inputs, and no attack of the campaign looks for inputs that are wrong and accepted: by the gradient where "
        "there is one, and with the surrogates where a stage declares one"
    )
    cost = "none: the campaign has asked"
    source = "Carlini & Wagner 2017, Adversarial examples are not easily detected, arXiv:1705.07263; Tramer et al. 2020, arXiv:2002.08347"

    def run(self, context: CheckContext) -> Finding:
        """Look at what the campaign's attacks know."""
        target = context.target
        if not target.rejects:
            return self.not_applicable("the target rejects nothing")
        gradients, cut = "gradients" in target.capabilities, sorted(declared_surrogates(target))
        adaptive = [found.name for found in context.headline if _reckons(found, gradients, bool(cut))]
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
        )


def _reckons(found: AttackEvidence, gradients: bool, cut: bool) -> bool:
    attack = found.attack
    if not isinstance(attack, Attack) or not attack.knows_rejection:
        return False
    return not gradients or (found.gradients and (attack.uses_surrogates or not cut))
