"""Whether there is anything to defend: a network that has learned nothing, or that is given other pixels than it learned from."""

from __future__ import annotations

from typing import TypedDict

from robustkd.contracts import Check, CheckContext, Finding, Share
from robustkd.evaluation.judging import clean_shares
from robustkd.lazy import torch
from robustkd.normalisation.constants import NAMED
from robustkd.scoring.intervals import wilson

LIMIT = 0.1
RISE = 0.05
SAMPLES = 256
"""How many of the samples are tried with other constants, at most."""


class _Numbers(TypedDict):
    accuracy: Share
    share_of_commonest_class: Share
    share_of_commonest_answer: Share
    n: int


class NotTrained(Check):
    """Does the network know more than which class is the commonest?

        skill = (accuracy - p) / (1 - p),     p: the share of the commonest class among the test samples

    It is 0 for the best constant answer and 1 for a network that is always right. Where it is near 0, nothing can be broken: a constant
    network keeps its accuracy under every attack. Its interval is the Wilson interval of the accuracy, with p taken as known.

    A network that learned from normalised images and is given pixels classifies many of them wrongly. So it is asked once more behind
    each of the usual normalisations (``normalisation.constants.NAMED``).
    """

    regions = ("given", "chosen")
    severity = "severe"
    rule = (
        "the accuracy without an attack is at most a tenth of the way from the share of the commonest class to 1 (skill below 0.1); a "
        "warning where only the lower end of its 95 % interval is, or where all samples are of one class. "
        "Or the accuracy is at least 5 points higher with the usual constants of a normalisation, and "
        "the 95 % intervals are apart"
    )
    cost = "up to 9 forward passes a sample, on 256 samples"
    source = (
        "Cohen 1960, A coefficient of agreement for nominal scales, with the commonest class as chance; the threshold is ours"
    )
    doubts = "use"

    def run(self, context: CheckContext) -> Finding:
        """Compare the clean predictions with the best constant one."""
        logits, labels = context.batch.logits, context.batch.labels
        assert logits is not None
        predicted = logits.argmax(1)
        n, right = len(labels), float(clean_shares(context.batch).sum())
        commonest = int(torch.bincount(labels).max())
        answer = int(torch.bincount(predicted).argmax())
        answered = int((predicted == answer).sum()) / n
        told = f"{100 * right / n:.1f} % of {n} test samples are classified rightly, {100 * commonest / n:.1f} % are of the commonest class"
        numbers: _Numbers = {
            "accuracy": Share(right / n),
            "share_of_commonest_class": Share(commonest / n),
            "share_of_commonest_answer": Share(answered),
            "n": n,
        }
        if commonest == n:
            return self.finding(
                True,
                severity="warning",
                fix="take test samples of several classes",
                explanation=f"all {n} test samples are of one class: a network that always answers it would do as well",
                **numbers,
            )
        if missing := self._normalisation(context):
            return missing
        chance = commonest / n
        skill, low, high = ((share - chance) / (1 - chance) for share in (right / n, *wilson(right, n)))
        nothing = skill < LIMIT
        said = (
            f"the network has learned nothing (it answers class {answer} for {100 * answered:.1f} % of them)"
            if nothing
            else f"with n = {n} it cannot be told from a network that has learned nothing"
        )
        return self.finding(
            low < LIMIT,
            severity="severe" if nothing else "warning",
            fix="train it longer, or see that its inputs are normalised and its classes numbered as in its training"
            if nothing
            else "take more test samples, or a better network",
            explanation=f"{told}: {said}",
            skill=skill,
            skill_ci_low=low,
            skill_ci_high=high,
            **numbers,
        )

    def _normalisation(self, context: CheckContext) -> Finding | None:
        """The finding that the network is more often right behind one of the usual normalisations; None where it is not."""
        inputs, labels = context.batch.inputs[:SAMPLES], context.batch.labels[:SAMPLES]
        if inputs.ndim != 4:
            return None
        n, right = len(labels), float(clean_shares(context.batch)[:SAMPLES].sum())
        found: dict[str, int] = {}
        for name, pair in NAMED.items():
            mean, std = (torch.tensor(part, dtype=inputs.dtype, device=inputs.device).view(-1, 1, 1) for part in pair)
            if len(mean) in (1, inputs.shape[1]):
                with torch.no_grad():
                    found[name] = int((context.target((inputs - mean) / std).argmax(1) == labels).sum())
        best = max(found, key=lambda name: found[name])
        if found[best] - right < RISE * n or wilson(found[best], n)[0] <= wilson(right, n)[1]:
            return None
        return self.finding(
            True,
            fix=f"put the normalisation of its training before it: normalise: {best}, or its mean and std (an external defense, "
            "--normalise of attack and audit, normalise= in Python)",
            explanation=f"{100 * right / n:.1f} % of {n} test samples are classified rightly; with the usual constants of {best} "
            f"{100 * found[best] / n:.1f} %: is the normalisation missing?",
            accuracy=right / n,
            constants=best,
            accuracy_normalised=found[best] / n,
            n=n,
        )
