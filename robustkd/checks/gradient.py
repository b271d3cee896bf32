"""Checks of the gradient that white-box attacks live on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.checks.probe import right
from robustkd.contracts import Check, CheckContext, Finding, Params, Share
from robustkd.contracts.json_value import JsonValue
from robustkd.lazy import F, torch
from robustkd.targets.rejection import class_logits

if TYPE_CHECKING:
    from torch import Tensor

LIMIT = 0.05


class ZeroGradientParams(Params):
    samples: int = Field(256, ge=1, description="samples that are looked at")


class ZeroGradient(Check):
    """For how many samples is there no direction to climb in?

    5 %: a share that would move a robust accuracy beyond the interval of a test set of a few hundred samples. Single dead samples
    occur on honest networks, where float32 rounds the cross entropy of a very sure answer to 0.

    Entries that are NaN or infinite count as zero, as they do for the attacks; single ones are a warning, with the samples' names.
    """

    Params = ZeroGradientParams
    cost = "2 forward and 2 backward passes a sample, on 256 samples"
    regions = ("given", "chosen")
    severity = "severe"
    rule = (
        "for more than 5 % of the samples the input gradient of the loss is exactly zero, entries that are NaN or infinite taken as "
        "zero; a warning where any sample's gradient has such entries"
    )
    version = "2"
    source = "AutoAttack's flag for zero gradients (Croce & Hein 2020); Athalye et al. 2018; the threshold is ours"

    def run(self, context: CheckContext) -> Finding:
        """The gradient of the cross entropy and of the logit margin, on rightly classified samples."""
        batch = right(context, self.params.samples)
        if not len(batch):
            return self.not_applicable("no sample is classified rightly")
        seen = {name: _gradients(context, batch.inputs, batch.labels, loss) for name, loss in _LOSSES.items()}
        ce, margin = (float((flat.nan_to_num(0.0, 0.0, 0.0) == 0).all(1).float().mean()) for flat in seen.values())
        invalid = torch.stack([~flat.isfinite() for flat in seen.values()]).any(0)
        touched = batch.index[invalid.any(1)].tolist()
        dead = max(ce, margin) > LIMIT
        said = (
            f"for {100 * ce:.0f} % of the samples the input gradient of the cross entropy is exactly zero "
            f"(of the logit margin: {100 * margin:.0f} %)"
        )
        if touched:
            kinds = " and ".join(
                kind
                for kind, test in (("NaN", torch.isnan), ("inf", torch.isinf))
                if any(bool(test(flat).any()) for flat in seen.values())
            )
            named = ", ".join(map(str, touched[:5])) + (", .." if len(touched) > 5 else "")
            beside = (
                f"for {len(touched)} of {len(batch)} samples ({named}) {100 * float(invalid.float().mean()):.2g} % of all entries "
                f"of the input gradient are {kinds}, which attacks take as 0"
            )
            said = f"{said}; {beside}" if dead else beside
        remedies: list[dict[str, JsonValue]] = []
        if margin > LIMIT:
            remedies = [{"kind": "bpda", "attack": {"kind": "pgd", "steps": 40}}, {"kind": "square", "queries": 1000}]
        elif dead:
            remedies = [{"kind": "apgd-dlr"}]
        return self.finding(
            dead or bool(touched),
            fix="attack with a margin loss or rescaled logits; where the margin's gradient is zero too, use BPDA or a black-box attack"
            if dead
            else "give the model a finite slope there, such as sqrt(x + 1e-12)",
            severity=None if dead or not touched else "warning",
            explanation=said,
            remedies=remedies,
            n=len(batch),
            dead_share_cross_entropy=Share(ce),
            dead_share_margin=Share(margin),
            samples_not_finite=touched,
        )


def _gradients(context: CheckContext, inputs: Tensor, labels: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """(N, values), 0 where there is no graph."""
    found = []
    for x, y in zip(inputs.split(64), labels.split(64), strict=True):
        x = x.detach().requires_grad_()
        value = loss(class_logits(context.target, context.target(x), y), y)
        gradient = torch.autograd.grad(value, x, allow_unused=True)[0] if value.requires_grad else None
        found.append((torch.zeros_like(x) if gradient is None else gradient).flatten(1))
    return torch.cat(found)


def _margin(logits: Tensor, labels: Tensor) -> Tensor:
    own = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    return (logits.scatter(1, labels.unsqueeze(1), -torch.inf).amax(1) - own).sum()


_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": lambda logits, labels: F.cross_entropy(logits, labels, reduction="sum"),
    "margin": _margin,
}


class BrokenGraphParams(Params):
    samples: int = Field(8, ge=1, description="samples that are looked at")


class BrokenGraph(Check):
    """Does the network let a gradient through at all?

    No threshold: without a gradient every white-box attack fails, whatever the network is worth.
    """

    Params = BrokenGraphParams
    regions = ("given", "chosen")
    severity = "severe"
    rule = "the output has no graph to the input, or the backward pass raises"
    source = "Carlini et al. 2019, On evaluating adversarial robustness, section 5; Pintor et al. 2022 (unavailable gradients)"
    cost = "1 forward and 1 backward pass a sample, on 8 samples"

    def run(self, context: CheckContext) -> Finding:
        """Differentiate the sum of the logits with respect to the input, once."""
        inputs = context.batch.inputs[: self.params.samples].detach().requires_grad_()
        error = ""
        logits = context.target(inputs)
        if not logits.requires_grad:
            error = "the output has no graph"
        else:
            try:
                (gradient,) = torch.autograd.grad(logits.sum(), inputs, allow_unused=True)
                error = "the output does not depend on the input" if gradient is None else ""
            except Exception as failure:  # whatever a backward pass of somebody's own may raise
                error = f"{type(failure).__name__}: {failure}".splitlines()[0]
        return self.finding(
            bool(error),
            fix="use a black-box attack, or give the stage a backward pass (BPDA)",
            explanation=f"no gradient reaches the input: {error}",
            remedies=[{"kind": "bpda", "attack": {"kind": "pgd", "steps": 40}}, {"kind": "square", "queries": 1000}],
            error=error,
            n=len(inputs),
        )
