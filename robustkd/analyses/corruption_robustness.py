"""Accuracy under each common corruption at each severity, and its mean.

    A_fs = share of samples x with f(c_fs(x)) = y,      mean corruption accuracy = 1 / (15 * 5) sum_fs A_fs

over all samples: one that is misclassified as it is counts where its corrupted form is classified rightly, as in the benchmark.
1 - A is the benchmark's error without its division by AlexNet's.

Source: Hendrycks, Dietterich: Benchmarking neural network robustness to common corruptions and perturbations (ICLR 2019), section 3.
"""

from __future__ import annotations

from pydantic import Field

from robustkd.analyses.members import first_samples, parts
from robustkd.attacks.image.corruptions.corruption_families import FAMILIES, GROUPS, SEVERITIES, corrupted
from robustkd.contracts import Analysis, Batch, Params, Table, Target, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch


class CorruptionRobustnessParams(Params):
    samples: int = Field(1000, ge=1, description="samples at most")


class CorruptionRobustness(Analysis):
    """The accuracy under 15 corruptions at 5 severities."""

    Params = CorruptionRobustnessParams
    inputs = "images"
    source = "Hendrycks and Dietterich 2019, arXiv:1903.12261"

    def run(self, target: Target, batch: Batch, threat: ThreatModel, seed: int) -> Table:
        """The table; ``metrics``: its mean, and the mean of noise, blur, weather and digital."""
        samples = first_samples(batch, self.params.samples)
        wrong = [[self._wrong(target, samples, family, severity, seed) for severity in SEVERITIES] for family in FAMILIES]
        means = {family: 1 - sum(row) / len(row) for family, row in zip(FAMILIES, wrong, strict=True)}
        groups = {f"{group}_accuracy": sum(means[name] for name in names) / len(names) for group, names in GROUPS.items()}
        mean = sum(means.values()) / len(means)
        return Table(
            caption=f"share of {len(samples)} samples that are misclassified under the row's corruption at the column's severity",
            rows=list(FAMILIES),
            columns=[f"severity {severity}" for severity in SEVERITIES],
            values=wrong,
            shares=True,
            metrics={"mean_corruption_accuracy": mean, **groups},
        )

    def _wrong(self, target: Target, samples: Batch, family: str, severity: int, seed: int) -> float:
        count = 0
        for part in parts(samples):
            with torch.no_grad():
                logits = target(corrupted(part.inputs, family, severity, SampleRng(seed, part.index, "corruption")))
            count += int((logits.argmax(1) != part.labels).sum())
        return count / len(samples)
