"""CDA: curriculum data augmentation. SRe2L's inversion of a trained network, whose crops become smaller step by step.

    m(i) = 1 + (m_end - 1) * (1 - cos(pi * i / (milestone * steps))) / 2   until the milestone, then m_end      smallest area of a crop

First whole images are recovered, then details. The network is any of the campaign with BatchNorm: one that was trained on adversarial
examples may be inverted as well as one that was not.

From the authors: the curriculum with a cosine, losses and optimiser of SRe2L, a batch of one image of each class. From us: pixels are kept
in [0, 1]; soft labels are stored for the image itself. Theirs are stored for each crop: take ``dataset-reinforcement`` with the same
network as teacher for the recipe, which asks it about augmented copies.

Control: ``random-subset`` with a recipe ``kd`` of the same network, which gives it the same labels.

Source: Yin, Shen: Dataset distillation via curriculum data synthesis in large data era (TMLR 2024), arXiv:2311.18838; settings as in the
authors' code for SRe2L and CDA on CIFAR-100.
"""

from __future__ import annotations

import math
from typing import ClassVar

from pydantic import Field

from robustkd.condensers.engine.inversion import InversionParams, inverted
from robustkd.contracts import Arrays, Condenser, FitContext, Params, TargetRef
from robustkd.defenses.training.networks import teacher


class CDAParams(InversionParams):
    network: TargetRef = Field(description="the defense whose model is inverted, one with BatchNorm")
    milestone: float = Field(
        1.0, gt=0, le=1, description="the share of the steps after which crops are as small as they become"
    )


class CDA(Condenser):
    """Images that a trained network is inverted to, from the whole to its details."""

    Params: ClassVar[type[Params]] = CDAParams
    source = "Yin & Shen 2024, arXiv:2311.18838"

    def condense(self, context: FitContext[Arrays]) -> Arrays:
        """Invert the network."""
        p = self.params
        return inverted(context, teacher(context, p.network), p, lambda step: curriculum(step, p))


def curriculum(step: int, params: CDAParams) -> float:
    """m(i), the smallest share of the image that a crop shows in a step."""
    done = min(1.0, step / max(1.0, params.milestone * params.steps))
    return 1 + (params.smallest_crop - 1) * (1 - math.cos(math.pi * done)) / 2
