"""How little the members of an ensemble share of their non-robust features.

    D_ij = mean CE( f_j(x'_i), y ),      x'_i the feature that member i distils of x (label y) near a source image: dverge.py

over samples that every member classifies rightly; the layer is drawn for each few samples. Where i and j see alike, f_j takes x'_i for
what it was distilled from and D_ij is small.

Source: Yang et al.: DVERGE (NeurIPS 2020), equation 2 and section 4.3: eps 0.07, 10 steps of eps / 10.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.analyses.members import all_right, mean_over_pairs, members_of, names_of, parts
from robustkd.attacks.image.engine.ball import StepSize
from robustkd.contracts import Analysis, Batch, Params, Table, Target, ThreatModel
from robustkd.defenses.image.ensembles.dverge import distilled
from robustkd.defenses.training.features import layer_count
from robustkd.lazy import F, torch

if TYPE_CHECKING:
    from torch import Tensor

_OF_ONE_LAYER = 32


class DiversityParams(Params):
    eps: float = Field(0.07, gt=0, description="radius of the distillation's linf ball, in pixel units")
    steps: int = Field(10, ge=1, description="steps of the distillation, each of eps / steps")
    samples: int = Field(1000, ge=2, description="samples at most")


class Diversity(Analysis):
    """The cross entropy of each member on what each other one distils."""

    Params = DiversityParams
    source = "Yang et al. 2020, arXiv:2009.14720"

    def run(self, target: Target, batch: Batch, threat: ThreatModel, seed: int) -> Table:
        """The matrix; ``metrics``: its mean over pairs of different members."""
        p, members = self.params, members_of(target, "diversity")
        samples = all_right(members, batch, p.samples)
        generator = torch.Generator().manual_seed(seed)
        partner = torch.randperm(len(samples), generator=generator).to(samples.inputs.device)
        wanted = samples.select(partner)
        total = torch.zeros(len(members), len(members), dtype=torch.float64)
        for source, goal in zip(parts(samples, _OF_ONE_LAYER), parts(wanted, _OF_ONE_LAYER), strict=True):
            share = float(torch.rand((), generator=generator))
            for i, member in enumerate(members):
                layer = int(share * layer_count(member))
                size = StepSize(share=1 / p.steps)
                x = distilled(member, layer, source.inputs, goal.inputs, eps=p.eps, size=size, steps=p.steps)
                total[i] += torch.stack([_loss(judge, x, goal.labels) for judge in members])
        values = (total / len(samples)).tolist()
        names = names_of(members)
        return Table(
            caption=f"cross entropy of the column's member on what the row's member distils (eps {p.eps:.4g}, {p.steps} steps, "
            f"{len(samples)} samples that every member classifies rightly); high is diverse",
            rows=[f"distilled by {name}" for name in names],
            columns=names,
            values=values,
            metrics={"diversity": mean_over_pairs(values)},
        )


def _loss(judge: Target, x: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return F.cross_entropy(judge(x), labels, reduction="sum").cpu().double()
