"""Is the loss a slope that an attack can follow?"""

from __future__ import annotations

from pydantic import Field

from robustkd.checks.probe import random_points, rescaled_margin, right
from robustkd.contracts import Check, CheckContext, Finding, Params
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch
from robustkd.targets.rejection import class_logits

RADIUS = 0.1
"""Of eps: about the step of an attack, so that what is measured is what a step sees."""

LIMIT = 0.1


class UnstableLossParams(Params):
    samples: int = Field(16, ge=1, description="samples that are looked at")
    moves: int = Field(100, ge=1, description="random moves of each")


class UnstableLoss(Check):
    """Does the loss jump where the input hardly moves? Then a gradient says nothing about the next point.

    The moves reach a tenth of eps: a loss that changes smoothly over the whole ball changes by a small part of that. The loss is
    the rescaled margin and the change is relative to its mean size over the samples, because a cross entropy near 0 changes
    manifold under a move that means nothing. Over the honest networks of the zoo (tests/zoo) the change was at most 3 %.
    """

    Params = UnstableLossParams
    severity = "warning"
    rule = "over 100 random moves of up to eps / 10 the rescaled margin changes by more than 10 % of its size, on average"
    needs_norm = True
    source = "Pintor et al. 2022, Indicators of attack failure (unstable predictions); threshold set on tests/zoo"
    cost = "100 forward passes a sample, on 16 samples"

    def run(self, context: CheckContext) -> Finding:
        """Compare the loss at each sample with that at its neighbours."""
        batch = right(context, self.params.samples)
        if not len(batch) or context.threat.norm == "l0" or context.threat.eps == 0:
            return self.not_applicable("no sample is classified rightly, or there is no small move in this norm")
        assert batch.logits is not None
        here = rescaled_margin(class_logits(context.target, batch.logits, batch.labels), batch.labels, batch.goals)
        bounds = context.target.bounds
        rng = SampleRng(context.seed, batch.index, "unstable-loss")
        total = torch.zeros_like(here)
        with torch.no_grad():
            for move in range(self.params.moves):
                points = random_points(batch.inputs, RADIUS * context.threat.eps, context.threat.norm, rng.fork(move), bounds)
                logits = class_logits(context.target, context.target(points), batch.labels)
                total += (rescaled_margin(logits, batch.labels, batch.goals) - here).abs()
        change = float((total / self.params.moves).mean() / here.abs().mean().clamp_min(1e-12))
        return self.finding(
            change > LIMIT,
            fix="average the gradient over a neighbourhood (EOT over noise), or use a black-box attack",
            explanation=f"moves of a tenth of eps change the loss by {100 * change:.1f} % of its size",
            remedies=[{"kind": "square", "queries": 1000}],
            relative_change=change,
            moves=self.params.moves,
            n=len(batch),
        )
