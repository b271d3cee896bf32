"""PG-SB: SwiftBrush under a guidance that is drawn anew for each picture (SNOOPI, Nguyen et al. 2024).

    g ~ U[least_guidance, most_guidance],   for teacher and score alike;   all else as in ``swiftbrush``, which is its control

The paper's other half, a negative prompt in the cross-attention (NASA), needs no training: it is the defense ``nasa``. The range of the
guidance is ours; of the paper only the abstract was read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from robustkd.defenses.diffusion.one_step.score_distillation import Models, Noised, ScoreDistillationParams
from robustkd.defenses.diffusion.one_step.swiftbrush import VariationalDistillation, noise_difference
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class PGSBParams(ScoreDistillationParams):
    least_guidance: float = Field(1.5, ge=1, description="of teacher and score: the least that is drawn")
    most_guidance: float = Field(4.5, ge=1, description="the most")

    @model_validator(mode="after")
    def _in_order(self) -> PGSBParams:
        if self.least_guidance > self.most_guidance:
            raise ValueError(f"least_guidance {self.least_guidance:g} is above most_guidance {self.most_guidance:g}")
        return self


class PGSB(VariationalDistillation):
    """SwiftBrush with a random guidance."""

    Params = PGSBParams
    source = "Nguyen et al., SNOOPI: supercharged one-step diffusion distillation with proper guidance, 2024, arXiv:2412.02687"

    def direction(self, models: Models, seen: Noised, draws: torch.Generator) -> Tensor:
        """SwiftBrush's, with a guidance for each picture."""
        p = self.params
        share = torch.rand(len(seen.t), generator=draws).to(seen.z).reshape(-1, 1, 1, 1)
        return noise_difference(models, seen, p.least_guidance + share * (p.most_guidance - p.least_guidance))
