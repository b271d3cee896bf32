"""How far examples made on one member of an ensemble fool the others, and the ensemble.

    T_ij = share of samples x with f_j(x'_i) != y in one of the attempts,      x'_i = PGD on member i

N rows and N + 1 columns, the last being the ensemble, over the samples that every member classifies rightly.

Source: Yang et al.: DVERGE (NeurIPS 2020), section 4.3 and figure 5: PGD-50, 5 random starts, step eps / 5, eps 0.03, 1,000 samples.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.analyses.members import all_right, mean_over_pairs, members_of, names_of, parts
from robustkd.attacks.image.gradient.pgd import PGD, PGDParams
from robustkd.attacks.image.wrappers.transfer import Surrogate
from robustkd.contracts import Analysis, Batch, Params, Table, Target, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.contracts.threat import Norm
from robustkd.lazy import torch
from robustkd.targets import ImageTarget

if TYPE_CHECKING:
    from torch import Tensor


class TransferabilityParams(Params):
    eps: float | None = Field(None, gt=0, description="radius in pixel units, of the campaign's norm; default the campaign's")
    steps: int = Field(50, ge=1, description="steps of PGD, each of eps / 5")
    restarts: int = Field(5, ge=1, description="random starts; an example counts if one of them leads to it")
    samples: int = Field(1000, ge=1, description="samples at most")


class Transferability(Analysis):
    """The share of samples that examples made on one member break on each member and on the ensemble."""

    Params = TransferabilityParams
    source = "Yang et al. 2020, arXiv:2009.14720"

    def run(self, target: Target, batch: Batch, threat: ThreatModel, seed: int) -> Table:
        """The matrix; ``metrics``: its mean over pairs of different members, and over the ensemble's column."""
        p, members = self.params, members_of(target, "transferability")
        eps = p.eps if p.eps is not None else threat.eps
        samples = all_right(members, batch, p.samples)
        if p.eps is not None:  # a radius of the analysis' own, not the one that each sample came with
            samples = replace(samples, eps=None)
        judges = [*members, target]
        names = names_of(members)
        rows = []
        for name, member in zip(names, members, strict=True):
            broken = torch.cat([self._broken(member, judges, part, threat.norm, eps, seed, name) for part in parts(samples)])
            rows.append(broken.cpu().double().mean(0).tolist())
        onto = [row[-1] for row in rows]
        return Table(
            caption=f"share of {len(samples)} samples, all of which every member classifies rightly, that PGD-{p.steps} with "
            f"{p.restarts} random starts on the row's member breaks on the column's: {threat.norm}, eps {eps:.4g}",
            rows=[f"made on {name}" for name in names],
            columns=[*names, "ensemble"],
            values=rows,
            shares=True,
            metrics={"transferability": mean_over_pairs(rows), "transferability_to_ensemble": sum(onto) / len(onto)},
        )

    def _broken(
        self, member: ImageTarget, judges: list[Target], part: Batch, norm: Norm, eps: float, seed: int, name: str
    ) -> Tensor:
        """(B, N + 1) bool."""
        p = self.params
        attack = PGD(PGDParams(steps=p.steps, step_size=eps / 5))
        threat = ThreatModel(norm=norm, eps=eps)
        broken = torch.zeros(len(part), len(judges), dtype=torch.bool, device=part.inputs.device)
        for restart in range(p.restarts):
            rng = SampleRng(seed, part.index, f"transferability/{name}/{restart}")
            # On a surrogate every step is made: stopping where the member itself falls would leave most of what transfers unused.
            x = attack.run(Surrogate(member), part, threat, rng).adversarial
            with torch.no_grad():
                broken |= torch.stack([part.reached(judge(x).argmax(1)) for judge in judges], 1)
        return broken
