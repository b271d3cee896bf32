"""RAW: a classifier behind a camera's mosaic and a learned development, see ``robustkd.transforms.raw``.

    min_G  mean || G(m(x)) - x ||^2     on clean images

The classifier is left as it is. No step has a gradient that hides anything: attack it as it stands.

Control: ``{kind: input-transform, transforms: [demosaic]}``, the same without a network.

Source: Zhang, Dong, Heide: All you need is RAW (ECCV 2022), arXiv:2112.09219. Their evaluation attacks the classifier alone, which is
``transfer`` from the base here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from robustkd.contracts import FitContext, Target
from robustkd.defenses.image.inputs.in_front import TrainedInFront, TrainedInFrontParams
from robustkd.defenses.training import Minibatch, Recipe
from robustkd.defenses.training.params import EpochsParam, LRParam, ScheduleParam
from robustkd.lazy import F

if TYPE_CHECKING:
    from torch import Tensor


class RawRecipe(Recipe):
    """The squared error of the learned development."""

    def loss(self, target: Any, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over the pixels."""
        stage = target.module.transforms[0]
        images = batch.x.expand(-1, 3, -1, -1)
        recorded = stage.bayer.mosaic(images)
        error = F.mse_loss(stage.learned(stage.bayer.demosaic(recorded), recorded), images)
        return error, {"error": error}


class RawDefenseParams(TrainedInFrontParams):
    alpha: float = Field(0.7, gt=0, le=1, description="weight of the learned development; the conventional one has the rest")
    width: int = Field(16, ge=1, description="channels of the network's hidden layers")
    epochs: EpochsParam = 10
    lr: LRParam = 1e-3
    schedule: ScheduleParam = "cosine"


class RawDefense(TrainedInFront):
    """A model of the campaign behind a camera's mosaic and a learned development."""

    Params = RawDefenseParams
    source = "Zhang et al. 2022, arXiv:2112.09219"

    def fit(self, context: FitContext) -> Target:
        """Train the development; of its epochs the one is kept after which the model classifies the validation images best.

        Raises:
            UsageError: the base is no classifier of images, or these are neither grey nor RGB.
        """
        stage = {"kind": "raw", "alpha": self.params.alpha, "width": self.params.width}
        return self.fit_stage(context, stage, RawRecipe(), name="development")
