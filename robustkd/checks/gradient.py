"""Checks of the gradient that white-box attacks live on."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from robustkd.contracts import Check, CheckContext, Finding, Params

LIMIT = 0.05


class ZeroGradientParams(Params):
    """Parameters of ``zero-gradient``."""

    samples: int = Field(256, ge=1, description="samples that are looked at")


class ZeroGradient(Check):
    """For how many samples is there no direction to climb in?"""

    Params = ZeroGradientParams
    severity = "severe"
    rule = "for more than 5 % of the samples the input gradient of the loss is exactly zero or not finite"
    source = "AutoAttack's flag for zero gradients (Croce & Hein 2020); Athalye et al. 2018; threshold of checks.md"

    def run(self, context: CheckContext) -> Finding:
        """The gradient of the cross entropy and of the logit margin, on rightly classified samples."""
        batch = context.batch
        assert batch.logits is not None
        right = (batch.logits.argmax(1) == batch.labels).nonzero().squeeze(1)[: self.params.samples]
        if not len(right):
            return self.not_applicable("no sample is classified rightly")
        inputs, labels = batch.inputs[right], batch.labels[right]
        shares = {name: self._share(context, inputs, labels, loss) for name, loss in _LOSSES.items()}
        ce, margin = shares["cross_entropy"], shares["margin"]
        said = (
            f"for {100 * ce:.0f} % of the samples the input gradient of the cross entropy is exactly zero "
            f"(of the logit margin: {100 * margin:.0f} %)"
        )
        return self.finding(
            max(shares.values()) > LIMIT,
            fix="attack with a margin loss or rescaled logits; where the margin's gradient is zero too, use BPDA or a black-box attack",
            explanation=said,
            n=len(right),
            **{f"dead_share_{name}": share for name, share in shares.items()},
        )

    def _share(self, context: CheckContext, inputs: Tensor, labels: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> float:
        dead = 0
        for x, y in zip(inputs.split(64), labels.split(64), strict=True):
            x = x.detach().requires_grad_()
            value = loss(context.target(x), y)
            if not value.requires_grad:
                return 1.0
            (gradient,) = torch.autograd.grad(value, x, allow_unused=True)
            if gradient is None:
                return 1.0
            flat = gradient.flatten(1)
            dead += int((~torch.isfinite(flat).all(1) | (flat == 0).all(1)).sum())
        return dead / len(inputs)


def _margin(logits: Tensor, labels: Tensor) -> Tensor:
    own = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    return (logits.scatter(1, labels.unsqueeze(1), -torch.inf).amax(1) - own).sum()


_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": lambda logits, labels: F.cross_entropy(logits, labels, reduction="sum"),
    "margin": _margin,
}
