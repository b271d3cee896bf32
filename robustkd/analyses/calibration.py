"""Calibration: does a network that says 90 % err one time in ten?

    ECE = sum_b n_b / n * | accuracy_b - confidence_b |          confidence: the largest probability
    Brier = mean_i sum_c (p_ic - onehot(y_i)_c)^2,   NLL = mean_i -log p_i,y

Bins b are 15 of equal width (the usual ECE) or 15 of equal count (adaptive: no bin is nearly empty where a network is sure of all). On
clean samples. ECE grows with noise in the bins' accuracies: of few samples it is biased upwards.

Sources: Guo et al.: On calibration of modern neural networks (ICML 2017), section 2; Nguyen, O'Connor: Posterior calibration and
exploratory analysis for natural language processing models (EMNLP 2015) for the adaptive bins; Brier 1950.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.analyses.members import parts
from robustkd.contracts import Analysis, Batch, Params, Table, Target, ThreatModel
from robustkd.lazy import F, torch

if TYPE_CHECKING:
    from torch import Tensor


class CalibrationParams(Params):
    bins: int = Field(15, ge=1, description="of equal width, and of equal count")


def calibration_error(confidence: Tensor, right: Tensor, members: list[Tensor]) -> float:
    """ECE of (N,) confidences and (N,) bool, in the bins whose rows are given."""
    gaps = [len(rows) * float((right[rows].double().mean() - confidence[rows].mean()).abs()) for rows in members if len(rows)]
    return sum(gaps) / len(confidence)


def equal_width(confidence: Tensor, bins: int) -> list[Tensor]:
    """The rows in ((b - 1) / bins, b / bins], for each b."""
    number = (confidence * bins).ceil().long().clamp(1, bins)
    return [torch.nonzero(number == b).squeeze(1) for b in range(1, bins + 1)]


def equal_count(confidence: Tensor, bins: int) -> list[Tensor]:
    """The rows in order of confidence, in parts whose sizes differ by one at most."""
    return list(confidence.argsort(stable=True).tensor_split(bins))


class Calibration(Analysis):
    """How far the confidences are from the accuracies."""

    Params = CalibrationParams
    source = "Guo et al. 2017, arXiv:1706.04599"

    def run(self, target: Target, batch: Batch, threat: ThreatModel, seed: int) -> Table:
        """The bins of equal width, whose gaps are the terms of ECE; ``metrics``: ECE in both kinds of bins, Brier score, NLL."""
        logits = batch.logits
        if logits is None:
            with torch.no_grad():
                logits = torch.cat([target(part.inputs) for part in parts(batch)])
        log_p, labels = logits.cpu().double().log_softmax(1), batch.labels.cpu()
        confidence, predicted = log_p.exp().max(1)
        right, bins = predicted == labels, self.params.bins
        wide = equal_width(confidence, bins)
        truth = F.one_hot(labels, log_p.shape[1])
        return Table(
            caption=f"of {len(labels)} clean samples, those whose largest probability lies in the row's range: their share, and by how "
            "much they are too sure: that share times mean probability less accuracy",
            rows=[f"{b / bins:.2f} to {(b + 1) / bins:.2f}" for b in range(bins)],
            columns=["share", "too sure by"],
            values=[
                [len(rows) / len(labels), float((confidence[rows] - right[rows].double()).sum()) / len(labels)] for rows in wide
            ],
            metrics={
                "ece": calibration_error(confidence, right, wide),
                "ece_adaptive": calibration_error(confidence, right, equal_count(confidence, bins)),
                "brier": float((log_p.exp() - truth).square().sum(1).mean()),
                "nll": float(F.nll_loss(log_p, labels)),
            },
        )
