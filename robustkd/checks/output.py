"""Checks of what the target returns."""

from __future__ import annotations

from pydantic import Field

from robustkd.contracts import Check, CheckContext, Finding, Params, Share, Target
from robustkd.contracts.check import Severity
from robustkd.lazy import torch
from robustkd.scoring.probabilities import outputs_of
from robustkd.targets import frozen
from robustkd.targets.logits import outputs_of_target, softmax_inside

SAMPLES = 256
"""Of how many samples the probabilities are looked at."""
SMALLEST = -87.3
"""A logarithm below it is of a probability that float32 has rounded to 0 (``targets.modules.log_of_probabilities``)."""


class OutputType(Check):
    """Are these logits? Margin losses mean something else on probabilities, and gradients are squashed twice.

    Where the platform has put the logarithm behind a softmax (``targets.logits``), of the model or of what it was made from, that is
    said, and it is a warning where probabilities are rounded to 0: these logits are lost. Not asked of a target that declares its
    output (``output``: an ensemble's log-probabilities): there it is meant, and right.
    """

    regions = ("given", "chosen")
    severity = "warning"
    rule = (
        "outputs lie in [0, 1] and sum to 1 (tolerance 1e-5), or their logsumexp is 0 (log-probabilities); info where the logarithm "
        "of the probabilities took their place, of the model or of its teachers, and none is 0"
    )
    source = "AutoAttack's own check for probabilities (Croce & Hein 2020), which misses log-probabilities"

    def run(self, context: CheckContext) -> Finding:
        """Test whether the clean outputs are probabilities or log-probabilities, also those of teachers and members."""
        logits = context.batch.logits
        assert logits is not None
        kind, told = outputs_of(logits), []
        severity: Severity = "info"
        logged = softmax_inside(context.target)
        if kind not in ("logits", context.target.output) and not logged:
            severity = "warning"
            told.append(f"the model returns {kind}")
        inputs = context.batch.inputs[:SAMPLES]
        teachers = {f"'{name}'": each for name, each in context.teachers.items() if isinstance(each, Target)}
        for name, model in {"the model": context.target, **teachers}.items():
            if not softmax_inside(model) and (model is context.target or outputs_of_target(model) != "probabilities"):
                continue
            with frozen(model.module), torch.no_grad():
                found = model(inputs)
            lost = int(((found == 0) | (found < SMALLEST)).any(1).sum())
            told.append(f"{name} returns probabilities, whose logarithm takes the place of its logits")
            if lost:
                severity = "warning"
                told[-1] += f"; for {lost} of {len(inputs)} samples some are rounded to 0, so that these logits are lost"
        logits = logits.cpu().double()
        return self.finding(
            bool(told),
            severity=severity,
            fix="return logits: remove the last softmax",
            explanation="; ".join(told) or f"the model returns {kind}",
            remedies=[{"kind": "pgd", "loss": "margin", "steps": 40}] if severity == "warning" else [],
            outputs="probabilities" if logged else kind,
            sum_minus_one=float((logits.sum(1) - 1).abs().max()),
            logsumexp=float(logits.logsumexp(1).abs().max()),
        )


class RandomisedParams(Params):
    samples: int = Field(64, ge=1, description="samples that are looked at")
    passes: int = Field(5, ge=2, description="forward passes of each")


class RandomisedOutput(Check):
    """Does the same input give the same output? If not, one gradient is one draw, and the attack climbs noise.

    With an attack on the expectation among those of the campaign (``eot``, or AutoAttack's version ``rand``) this is no more
    than worth knowing. 1e-4 of the logits' size is a hundred times float32's rounding.
    """

    Params = RandomisedParams
    regions = ("given", "chosen")
    severity = "severe"
    rule = "over 5 passes a prediction changes, or the logits differ by more than 1e-4 of their size, and no attack averages over passes"
    source = "AutoAttack's flag for randomised defenses (Croce & Hein 2020); the threshold is ours"
    cost = "5 forward passes a sample, on 64 samples"

    def run(self, context: CheckContext) -> Finding:
        """Compare the logits and predictions of several passes over the same inputs."""
        inputs = context.batch.inputs[: self.params.samples]
        with torch.no_grad():
            outputs = torch.stack([context.target(inputs) for _ in range(self.params.passes)])
        predictions = outputs.argmax(2)
        changed = float((predictions != predictions[0]).any(0).float().mean())
        gap = float((outputs - outputs[0]).abs().amax() / outputs[0].abs().amax().clamp_min(1e-12))
        averaging = [a.name for a in context.headline if a.averages]
        said = f"the same input gives other logits from pass to pass (they differ by {100 * gap:.2g} % of their size)"
        return self.finding(
            changed > 0 or gap > 1e-4,
            severity="info" if averaging else None,
            fix="evaluate with expectation over transformation: average gradients and decisions over many draws",
            explanation=said + (f"; {', '.join(averaging)} averages over passes" if averaging else ""),
            remedies=[]
            if averaging
            else [{"kind": "eot", "attack": {"kind": "pgd", "steps": 40, "loss": "margin"}, "samples": 10}],
            predictions_changed=Share(changed),
            relative_gap=gap,
            passes=self.params.passes,
            n=len(inputs),
        )


class TooFewClasses(Check):
    """Are there enough classes for the losses that AutoAttack relies on?

    DLR divides by the gap to the third logit, its targeted form needs a fourth. Attacks of ours fall back on the margin, which with
    two classes is the same up to a constant; so the warning is for campaigns in which no attack climbs a margin at all.
    """

    regions = ("given", "chosen")
    severity = "warning"
    rule = "fewer than 4 classes, and no attack on a logit margin"
    source = "AutoAttack's flag for few classes (Croce & Hein 2020)"

    def run(self, context: CheckContext) -> Finding:
        """Compare the number of logits with the least that DLR needs."""
        logits = context.batch.logits
        assert logits is not None
        classes = logits.shape[1]
        margins = [attack.name for attack in context.headline if attack.loss_family == "margin"]
        return self.finding(
            classes < 4 and not margins,
            fix="add an attack on the margin: {kind: pgd, loss: margin}",
            explanation=f"there are {classes} classes, too few for DLR, and no attack climbs a margin instead",
            remedies=[{"kind": "pgd", "loss": "margin", "steps": 40}],
            classes=classes,
            attacks_on_the_margin=margins,
        )
