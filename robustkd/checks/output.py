"""Checks of what the target returns."""

from __future__ import annotations

import torch
from pydantic import Field

from robustkd.contracts import Check, CheckContext, Finding, Params


class OutputType(Check):
    """Are these logits? Margin losses mean something else on probabilities, and gradients are squashed twice.

    Not asked of a target that declares its output (``output``: an ensemble's log-probabilities): there it is meant, and right.
    """

    severity = "warning"
    rule = "outputs lie in [0, 1] and sum to 1 (tolerance 1e-5), or their logsumexp is 0 (log-probabilities)"
    source = "AutoAttack's own check for probabilities (Croce & Hein 2020), which misses log-probabilities"

    def run(self, context: CheckContext) -> Finding:
        """Look at the clean outputs."""
        logits = context.batch.logits
        assert logits is not None
        logits = logits.double()
        off_one = float((logits.sum(1) - 1).abs().max())
        off_zero = float(logits.logsumexp(1).abs().max())
        probabilities = bool(logits.min() >= 0) and bool(logits.max() <= 1) and off_one < 1e-5
        logarithms = off_zero < 1e-4
        kind = "probabilities" if probabilities else "log-probabilities" if logarithms else "logits"
        return self.finding(
            kind not in ("logits", getattr(context.target, "output", "logits")),
            fix="return logits: remove the last softmax",
            outputs=kind,
            sum_minus_one=off_one,
            logsumexp=off_zero,
        )


class RandomisedParams(Params):
    """Parameters of ``randomised-output``."""

    samples: int = Field(64, ge=1, description="samples that are looked at")
    passes: int = Field(5, ge=2, description="forward passes of each")


class RandomisedOutput(Check):
    """Does the same input give the same output? If not, one gradient is one draw, and the attack climbs noise."""

    Params = RandomisedParams
    severity = "severe"
    rule = "over 5 passes a prediction changes, or the logits differ by more than 1e-4 of their size"
    source = "AutoAttack's flag for randomised defenses (Croce & Hein 2020); checks.md"

    def run(self, context: CheckContext) -> Finding:
        """Ask several times."""
        inputs = context.batch.inputs[: self.params.samples]
        with torch.no_grad():
            outputs = torch.stack([context.target(inputs) for _ in range(self.params.passes)])
        predictions = outputs.argmax(2)
        changed = float((predictions != predictions[0]).any(0).float().mean())
        gap = float((outputs - outputs[0]).abs().amax() / outputs[0].abs().amax().clamp_min(1e-12))
        return self.finding(
            changed > 0 or gap > 1e-4,
            fix="evaluate with expectation over transformation: average gradients and decisions over many draws",
            predictions_changed=changed,
            relative_gap=gap,
            passes=self.params.passes,
            n=len(inputs),
        )
