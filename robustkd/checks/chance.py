"""A search against chance: what an attack breaks with many attempts, many attempts may break without it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from robustkd.checks.prompts import broken_by, is_control
from robustkd.contracts import AttackEvidence, Check, CheckContext, Finding, GenerativeTarget, PromptBatch, Share
from robustkd.scoring.clustered import clustered_interval


class ChanceBeatsSearch(Check):
    """Does a control that searches for nothing break as much, with as many attempts?

    The success of an attack on prompts is the best of its attempts. Random tokens, or other random numbers, have as many attempts, and
    break what is about to break anyway. The two are compared request by request, and requests of one category are no independent
    evidence.
    """

    modalities = ("text", "text-to-image")
    severity = "warning"
    decisive = True
    rule = (
        "a control with as many attempts breaks as many requests as the best search; a note where the two cannot be told apart"
    )
    source = "this package; Zhang et al. 2024, arXiv:2310.11868, gives its attack 50 attempts and the baseline one"

    def run(self, context: CheckContext[GenerativeTarget, PromptBatch]) -> Finding:
        """The best search under the headline threat model against each control, whatever that one draws or writes."""
        searches = [attack for attack in context.headline if not is_control(attack)]
        attempts = context.threat.attempts
        # One that is not iterative asks once.
        controls = [a for a in context.attacks.values() if is_control(a) and a.iterative and a.threat.attempts == attempts]
        if not searches or not controls:
            return self.not_applicable("it compares a search with a control, such as random-prompt or seed-search")
        best = max(searches, key=lambda attack: int(broken_by(attack).sum()))
        categories = context.batch.requests.labels
        told, compared = {}, []
        for control in controls:
            ahead = broken_by(best).astype(int) - broken_by(control)
            low, high = clustered_interval(ahead, categories, context.seed)
            compared.append((control, float(ahead.mean()), low))
            told[control.name] = {
                "broken": int(broken_by(control).sum()),
                "share ahead of it": Share(ahead.mean()),
                **({"share at least": Share(low), "share at most": Share(high)} if np.isfinite(low) else {}),
            }
        equal = [control for control, _, low in compared if low <= 0 and bool(broken_by(control).any())]
        beaten = [control for control, ahead, _ in compared if ahead <= 0 and bool(broken_by(control).any())]
        return self.finding(
            bool(equal),
            severity=None if beaten else "info",
            fix="give the search more steps, another learning rate or more tokens; what it shows so far is that many attempts suffice",
            explanation=_explanation(best, controls, beaten or equal),
            search=best.name,
            broken=int(broken_by(best).sum()),
            n=len(categories),
            categories=len(np.unique(categories)),
            controls=told,
        )


def _explanation(best: AttackEvidence, controls: Sequence[AttackEvidence], equal: Sequence[AttackEvidence]) -> str:
    counts = ", ".join(f"{control.name} {int(broken_by(control).sum())}" for control in controls)
    said = f"{best.name} breaks {int(broken_by(best).sum())} of {len(best.standing)} requests, with as many attempts {counts}"
    return said + (f"; {' and '.join(control.name for control in equal)} cannot be told from it" if equal else "")
