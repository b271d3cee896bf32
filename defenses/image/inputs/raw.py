"""RAW: a classifier behind a camera's mosaic and a learned development, see ``robustkd.transforms.raw``.

    min_G  mean || G(m(x)) - x ||^2     on clean images

The classifier is left as it is. No step has a gradient that hides anything: attack it as it stands.

Control: ``{kind: input-transform, transforms: [demosaic]}``, the same without a network.

Source: Zhang, Dong, Heide: All you need is RAW (ECCV 2022), arXiv:2112.09219. Their evaluation attacks the classifier alone, which is
``transfer`` from the base here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field
from typing_extensions import override

from robustkd.contracts import Capabilities, Defense, FitContext, Target, TargetRef
from robustkd.defenses.training import Minibatch, Recipe, TrainParams, train
from robustkd.defenses.training.networks import seeded_init
from robustkd.lazy import F
from robustkd.targets import ImageTarget, PipelineTarget, TransformSpec, frozen

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


class RawDefenseParams(TrainParams):
    base: TargetRef = Field(description="the defense whose model is put behind the camera")
    alpha: float = Field(0.7, gt=0, le=1, description="weight of the learned development; the conventional one has the rest")
    width: int = Field(16, ge=1, description="channels of the network's hidden layers")
    epochs: int = Field(10, ge=1, description="passes over the training data")
    batch_size: int = Field(64, ge=1, description="samples in each step")
    optimiser: Literal["sgd", "adam", "adamw"] = Field("adam", description="the update rule")
    lr: float | None = Field(1e-3, gt=0, description="learning rate at the start")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty (decoupled for adamw)")
    schedule: Literal["constant", "cosine", "steps"] = Field(
        "cosine", description="how the learning rate falls over the epochs"
    )


class RawDefense(Defense):
    """A model of the campaign behind a camera's mosaic and a learned development."""

    Params = RawDefenseParams
    source = "Zhang et al. 2022, arXiv:2112.09219"

    @override
    def target_capabilities(self, others: Mapping[str, Capabilities]) -> Capabilities:
        return others[self.params.base] - {"members"}

    def fit(self, context: FitContext) -> Target:
        """Train the development; of its epochs the one is kept after which the model classifies the validation images best.

        Raises:
            UsageError: the base is no classifier of images, or these are neither grey nor RGB.
        """
        p = self.params
        base = context.target(p.base, ImageTarget)
        with seeded_init(context, "development"):
            target = PipelineTarget(base, [TransformSpec.model_validate({"kind": "raw", "alpha": p.alpha, "width": p.width})])
        with frozen(base.module):
            train(context, target, RawRecipe(), p)
        return target
