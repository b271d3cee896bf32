"""Whether the guards around a model were attacked, or only the model behind them."""

from __future__ import annotations

from robustkd.checks.prompts import BOTH, searches_of
from robustkd.contracts import Check, CheckContext, Finding, GenerativeTarget, PromptAttack, PromptBatch
from robustkd.targets.guarded import guards_of, unguarded


class GuardNotAttacked(Check):
    """Did an attack reckon with the guards in front of the model?

    A suffix that was found for the bare model is changed, or held back, by a guard that nobody searched against: its number says that the
    attack did not know the guard. Where the model or a guard tells no score, a search that improves on the answers is all that there is.
    """

    modalities = BOTH
    severity = "severe"
    rule = (
        "the model has a guard, and no search of the campaign has the guard in its loss; where there is no loss, none improves on the "
        "answers that come through the guard"
    )
    cost = "none: the campaign has asked"
    source = "Carlini & Wagner 2017, Adversarial examples are not easily detected, arXiv:1705.07263; Tramer et al. 2020, arXiv:2002.08347"

    def run(self, context: CheckContext[GenerativeTarget, PromptBatch]) -> Finding:
        """Look at what the campaign's searches know."""
        guards = [guard.kind for guard in guards_of(context.target)]
        guards += ["its negative prompt"] if getattr(unguarded(context.target), "negative_prompt", "") else []
        if not guards:
            return self.not_applicable("the model has no guard that an attack could ignore")
        draws = "denoising" in context.target.capabilities
        goes_by = "denoising" if draws else "log-probabilities"
        scored = goes_by in context.target.capabilities and all(guard.scored for guard in guards_of(context.target))
        adaptive = [found.name for found in searches_of(context) if _reckons(found.attack, scored)]
        names = ", ".join(guards)
        return self.finding(
            not adaptive,
            fix="add {kind: through-guard, attack: {kind: unlearndiffatk, place: replace}}"
            if draws
            else "add {kind: through-guard, attack: {kind: gcg}}, or beast in the place of gcg where perplexity is filtered"
            if scored
            else "add an attack that improves on the answers, such as {kind: pair, attacker: NAME}",
            explanation=f"{', '.join(adaptive)} reckons with {names}"
            if adaptive
            else f"no search of the campaign reckons with {names}",
            guards=guards,
            adaptive=adaptive,
        )


def _reckons(attack: object, scored: bool) -> bool:
    return isinstance(attack, PromptAttack) and (attack.knows_guards or (attack.improves_on_answers and not scored))
