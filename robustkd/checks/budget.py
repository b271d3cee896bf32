"""Checks that run the attack again with another budget: what must happen then is known."""

from __future__ import annotations

from pydantic import Field

from robustkd.checks.probe import attacked, gradient_attacks, pgd, right, white_box
from robustkd.contracts import Attack, Check, CheckContext, Finding, Params, Share
from robustkd.lazy import torch
from robustkd.scoring.distances import distance
from robustkd.scoring.intervals import wilson


class BudgetParams(Params):
    """Parameters of the checks that attack again."""

    samples: int = Field(64, ge=1, description="samples that are attacked")


class UnboundedAttack(Check):
    """With no bound at all, can the attack break the network? Every image is then allowed, so it must.

    The limit is 5 %: on 64 samples that is three, which leaves room for an attack that takes too few steps to cross the whole
    range, and none for one that follows no gradient.
    """

    Params = BudgetParams
    severity = "severe"
    rule = "with eps as large as the whole pixel range the campaign's strongest gradient attack leaves over 5 % standing"
    needs_norm = True
    source = "Athalye et al. 2018, Obfuscated gradients, section 3.1; Carlini et al. 2019, section 5"
    thorough = True
    cost = "the strongest attack once more, on 64 samples (most break at once)"

    def run(self, context: CheckContext) -> Finding:
        """Attack samples that are classified rightly."""
        attack = white_box(context)
        if attack is None:
            return self.not_applicable("the campaign has no iterative gradient attack of fixed budget")
        batch = right(context, self.params.samples)
        if not len(batch):
            return self.not_applicable("no sample is classified rightly")
        low, high = context.target.bounds
        reach = float(distance(torch.zeros_like(batch.inputs[:1]) + (high - low), context.threat.norm))
        outcome = attacked(context, attack, context.target, batch, context.threat.with_eps(reach))
        left = float(outcome.standing.mean())
        return self.finding(
            left > 0.05,
            fix="the attack follows no useful gradient: repair it, or use BPDA, EOT or a black-box attack",
            explanation=f"with no bound at all the attack leaves {100 * left:.1f} % of {len(batch)} samples standing",
            remedies=[{"kind": "square", "queries": 1000}],
            robust_accuracy_unbounded=Share(left),
            eps=reach,
            n=len(batch),
        )


class NotMonotone(Check):
    """Does a larger budget protect? The smaller ball lies inside the larger one, so it never can.

    Two runs that are independent of each other and of the campaign (whose own curve carries successes upwards and cannot show
    it), by PGD on the cross entropy; "beyond its interval" is the 95 % Wilson interval of the smaller budget's accuracy.
    """

    Params = BudgetParams
    regions = ("given",)
    severity = "severe"
    rule = "PGD leaves more standing at twice the eps than the upper end of the 95 % interval at eps"
    needs_norm = True
    source = "Carlini et al. 2019, On evaluating adversarial robustness, section 5 (accuracy against budget)"
    cost = "at most 22 forward and 20 backward passes a sample, on 64 samples"

    def run(self, context: CheckContext) -> Finding:
        """PGD with 10 steps at eps and at 2 eps."""
        attack = pgd(context.threat, steps=10)
        if attack.refusal(context.threat) or context.threat.eps == 0:
            return self.not_applicable("PGD cannot be used under this threat model")
        batch = right(context, self.params.samples)
        if not len(batch):
            return self.not_applicable("no sample is classified rightly")
        small, large = (
            attacked(context, attack, context.target, batch, context.threat.with_eps(factor * context.threat.eps)).standing
            for factor in (1, 2)
        )
        high = wilson(int(small.sum()), len(small))[1]
        before, after = float(small.mean()), float(large.mean())
        return self.finding(
            after > high,
            fix="the gradient is masked: attack with another loss, more steps, or without gradients",
            explanation=f"PGD leaves {100 * before:.1f} % standing at eps and {100 * after:.1f} % at twice eps",
            remedies=[{"kind": "square", "queries": 1000}],
            robust_accuracy=Share(before),
            ci_high=Share(high),
            robust_accuracy_twice_eps=Share(after),
            n=len(batch),
        )


class BudgetSensitivity(Check):
    """Would twice the effort have told another story?

    A number that has converged does not move: the limit is the lower end of the 95 % Wilson interval that the number itself
    carries, on the same samples.
    """

    Params = BudgetParams
    regions = ("given", "chosen")
    severity = "warning"
    rule = (
        "the strongest gradient attack with twice its steps, or twice its restarts, ends below the 95 % interval of its result"
    )
    source = "Carlini et al. 2019, On evaluating adversarial robustness, section 5 (convergence); the threshold is ours"
    thorough = True
    cost = "four times the strongest attack, on 64 samples"

    def run(self, context: CheckContext) -> Finding:
        """Run it again on the campaign's first samples."""
        strongest = next((a for a in gradient_attacks(context) if a.attack is not None), None)
        doubled = _doubled(strongest.attack) if strongest and isinstance(strongest.attack, Attack) else {}
        if strongest is None or not doubled:
            return self.not_applicable("no iterative gradient attack of the campaign has steps or restarts to double")
        n = min(self.params.samples, len(context.batch))
        batch = context.batch.select(context.batch.index.new_tensor(range(n)))
        before = strongest.standing[:n]
        low, high = wilson(int(before.sum()), n)
        # The union with what the campaign broke: the question is what more effort adds.
        after = {
            what: Share((before & attacked(context, attack, context.target, batch, context.threat).standing).mean())
            for what, attack in doubled.items()
        }
        said = ", ".join(f"{100 * value:.1f} % with twice the {what}" for what, value in after.items())
        return self.finding(
            min(after.values()) < low,
            fix="raise steps and restarts until the number no longer moves",
            explanation=f"{strongest.name} leaves {100 * before.mean():.1f} % of {n} samples standing, {said}",
            remedies=[{"kind": "apgd-dlr"}, {"kind": "apgd-t"}],
            robust_accuracy=Share(before.mean()),
            ci_low=Share(low),
            ci_high=Share(high),
            robust_accuracy_doubled=after,
            n=n,
        )


def _doubled(attack: Attack) -> dict[str, Attack]:
    """The attack with each of its efforts doubled: ``steps``, ``restarts``."""
    given = attack.params.model_dump()
    efforts = [name for name in ("steps", "restarts") if isinstance(given.get(name), int)]
    return {name: type(attack)(attack.params.model_copy(update={name: 2 * given[name]})) for name in efforts}
