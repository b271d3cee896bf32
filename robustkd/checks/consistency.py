"""Checks that compare attacks with each other: a stronger attack must not do worse than a weaker one."""

from __future__ import annotations

from collections.abc import Sequence

from robustkd.contracts import AttackEvidence, Check, CheckContext, Finding, Share
from robustkd.scoring.worst_case import worst_case


class _WeakBeatsStrong(Check):
    """Do attacks break samples that stronger ones left standing?"""

    regions = ("given",)
    version = "2"
    needs_norm = True

    def _compared(
        self, weak: Sequence[AttackEvidence], strong: Sequence[AttackEvidence], limit: float, a: str, b: str
    ) -> Finding:
        if not weak or not strong:
            return self.not_applicable(f"it compares {a} attack with {b} one")
        left = worst_case(attack.standing for attack in strong)
        lost = left & ~worst_case(attack.standing for attack in weak)
        share = float(lost.mean())
        return self.finding(
            share > limit and int(lost.sum()) > 1,  # a single sample tells nothing, however few there are
            fix="the stronger attack is broken by masked gradients or too few steps: add restarts, another loss, or a transfer attack",
            explanation=(
                f"{', '.join(x.name for x in weak)} breaks {int(lost.sum())} of the {int(left.sum())} samples "
                f"that {', '.join(x.name for x in strong)} left standing"
            ),
            broken_only_by_weaker=int(lost.sum()),
            standing_under_stronger=int(left.sum()),
            share=Share(share),
        )


class OneStepBeatsIterative(_WeakBeatsStrong):
    """Does one step succeed where many do not?"""

    severity = "warning"
    rule = "one-step attacks break samples that every iterative gradient attack left standing, more than 1 % of all and more than one"
    source = "Athalye et al. 2018, Obfuscated gradients, section 3.1; Carlini et al. 2019"

    def run(self, context: CheckContext) -> Finding:
        """Compare per sample, under the headline threat model."""
        same = [a for a in context.headline if a.gradients and a.kind == "fixed-budget"]
        weak, strong = [a for a in same if not a.iterative], [a for a in same if a.iterative]
        return self._compared(weak, strong, 0.01, "a one-step", "an iterative")


class BlackBoxBeatsWhiteBox(_WeakBeatsStrong):
    """Does an attack that sees no gradient succeed where those that see it do not?"""

    severity = "severe"
    rule = "black-box attacks break samples that every white-box attack left standing, more than 0.2 % of all and more than one"
    source = "Athalye et al. 2018, Obfuscated gradients, section 3.1; the threshold is ours"

    def run(self, context: CheckContext) -> Finding:
        """Compare per sample, under the headline threat model."""
        same = context.headline
        weak, strong = [a for a in same if not a.gradients], [a for a in same if a.gradients]
        return self._compared(weak, strong, 0.002, "a black-box", "a white-box")
