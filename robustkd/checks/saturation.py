"""Checks for a cross entropy that has saturated: the way in which defensive distillation looks robust without being it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from robustkd.checks.probe import attacked, pgd
from robustkd.contracts import Batch, Check, CheckContext, Finding, Params, Share, Target, WrappedTarget
from robustkd.lazy import torch
from robustkd.scoring.intervals import wilson
from robustkd.scoring.worst_case import worst_case

if TYPE_CHECKING:
    from torch import Tensor

SLACK = 0.05
"""Honest networks lose a few points between two losses (AdaAD: 56.78 % under PGD, 53.51 % under CW), and that is no symptom."""


class LossDisagreement(Check):
    """Do attacks that climb a logit margin break what attacks on the cross entropy leave standing?

    Both follow the same gradient of the same network. If only one of them works, the other's failure says nothing about the
    network.
    """

    regions = ("given",)
    severity = "severe"
    rule = "robust accuracy under margin attacks lies over 5 points below the 95 % interval of that under iterative cross-entropy ones"
    source = "Carlini & Wagner 2016, Defensive distillation is not robust; Croce & Hein 2020, section 4"

    def run(self, context: CheckContext) -> Finding:
        """Compare the campaign's own attacks under the headline threat model, per sample."""
        usable = [a for a in context.headline if a.iterative and a.gradients]
        entropy = [a for a in usable if a.loss_family == "cross-entropy"]
        margin = [a for a in usable if a.loss_family == "margin" and a.kind == "fixed-budget"]
        if not entropy or not margin:
            return self.not_applicable("it compares an iterative attack on the cross entropy with one on a margin")
        under_entropy = worst_case(a.standing for a in entropy)
        under_margin = worst_case(a.standing for a in margin)
        low, high = wilson(int(under_entropy.sum()), len(under_entropy))
        ce, other = float(under_entropy.mean()), float(under_margin.mean())
        only = int((under_entropy & ~under_margin).sum())
        said = (
            f"attacks on the cross entropy ({', '.join(a.name for a in entropy)}) leave {100 * ce:.1f} % standing, "
            f"attacks on the logit margin ({', '.join(a.name for a in margin)}) {100 * other:.1f} %: "
            f"the margin breaks {only} samples that the cross entropy does not"
        )
        return self.finding(
            other < low - SLACK,
            fix="believe the margin attacks; the cross entropy is saturated, so its gradient leads nowhere",
            explanation=said,
            remedies=[{"kind": "apgd-dlr"}, {"kind": "apgd-t"}],
            robust_accuracy_cross_entropy=Share(ce),
            cross_entropy_ci_low=Share(low),
            cross_entropy_ci_high=Share(high),
            robust_accuracy_margin=Share(other),
            broken_by_margin_only=only,
            n=len(under_entropy),
        )


class ScaleParams(Params):
    samples: int = Field(192, ge=1, description="samples that are attacked")
    steps: int = Field(20, ge=1, description="steps of PGD")


class LogitScaleInvariance(Check):
    """Dividing all logits by a number changes no decision. Does it change how robust the network looks?"""

    Params = ScaleParams
    regions = ("given",)
    severity = "severe"
    rule = "CE-PGD on logits divided by their mean gap ends over 5 points below the 95 % interval of CE-PGD on the logits"
    source = "Carlini & Wagner 2016, Defensive distillation is not robust, section 4; the threshold is ours"
    cost = "at most 42 forward and 40 backward passes a sample, on 192 samples"

    def run(self, context: CheckContext) -> Finding:
        """Two runs of the same attack, from the same random starts."""
        batch = context.batch
        assert batch.logits is not None
        if batch.logits.shape[1] < 2:
            return self.not_applicable("there is only one class")
        some = batch.select(torch.arange(min(self.params.samples, len(batch)), device=batch.inputs.device))
        assert some.logits is not None
        best = some.logits.topk(2, dim=1).values
        scale = float((best[:, 0] - best[:, 1]).mean())
        if scale <= 0:
            return self.not_applicable("all logits are equal")
        plain = self._robust(context, context.target, some)
        scaled = self._robust(context, _Scaled(context.target, scale), replace(some, logits=some.logits / scale))
        low, high = wilson(int(plain.sum()), len(plain))
        before, after = float(plain.mean()), float(scaled.mean())
        said = (
            f"dividing the logits by {scale:.4g} changes no decision, but PGD on the cross entropy then leaves {100 * after:.1f} % "
            f"standing instead of {100 * before:.1f} %"
        )
        return self.finding(
            after < low - SLACK,
            fix="evaluate with a loss that does not depend on the scale of the logits (margin, DLR)",
            explanation=said,
            remedies=[{"kind": "apgd-dlr"}, {"kind": "apgd-t"}],
            scale=scale,
            robust_accuracy=Share(before),
            ci_low=Share(low),
            ci_high=Share(high),
            robust_accuracy_rescaled=Share(after),
            n=len(plain),
        )

    def _robust(self, context: CheckContext, target: Target, batch: Batch) -> np.ndarray:
        return attacked(context, pgd(context.threat, steps=self.params.steps), target, batch, context.threat).standing


class _Scaled(WrappedTarget):
    """A target with its logits divided by a constant."""

    def __init__(self, target: Target, scale: float) -> None:
        super().__init__(target)
        self._scale = scale

    def __call__(self, inputs: Tensor) -> Tensor:
        return self.target(inputs) / self._scale
