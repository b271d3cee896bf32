"""VL2V-ADiP: a network that was trained on labels is aligned with a vision-language teacher, then distilled from it.

    stage 1, align    min_P  -l mean cos(P f(x), I(x)) - (1 - l) mean cos(P f(x), T(y))       the backbone f stands still
    stage 2, distil   min_f  the same                                                         the projection P stands still
    classify by cos(P f(x), T(k))

I are the teacher's image features and T the vectors of its class texts. Stage 1 finds where in the teacher's space the backbone's own
features lie, so that stage 2 need not unlearn them.

Good for a student that is to keep what it was pre-trained for and to hold in other domains. ``stages: align`` is what the first stage
alone gives, ``lam: 0`` the control without the teacher's image features: the labels' texts alone.

From the authors: both losses, l on the image term and 1 - l on the text term (0.5 in the paper from memory, 0.1 in their notes for data of
one domain), Adam. From us: the sizes, no CutMix, no averaging of weights (SWAD), and scaled logits.

Source: Addepalli et al.: Leveraging vision-language models for improving domain generalization in image classification (CVPR 2024),
section 4; the authors' code val-iisc/VL2V-ADiP, domainbed/algorithms/distill_clip.py, stages 1 and 2.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from robustkd.contracts import FitContext, Target, TargetRef
from robustkd.defenses.image.representations.encoders.held_out import HeldOutDefense, HeldOutParams, without_classes
from robustkd.defenses.image.representations.encoders.towers import ENCODER, frozen_towers
from robustkd.defenses.training import Minibatch, Recipe, Teacher, train
from robustkd.defenses.training.networks import seeded_init
from robustkd.defenses.training.networks import teacher as finished
from robustkd.defenses.training.params import OptimiserParam
from robustkd.lazy import F, nn
from robustkd.targets import ClassifierTarget
from robustkd.targets.activations import last_linear
from robustkd.targets.encoder import EncoderTarget
from robustkd.targets.two_tower import ImageTower, TwoTowerTarget, without_head

if TYPE_CHECKING:
    from torch import Tensor

Stage = Literal["align", "distil"]


class VL2VADiPParams(HeldOutParams):
    optimiser: OptimiserParam = "adam"
    teacher: TargetRef = Field(description=ENCODER)
    backbone: TargetRef = Field(description="the trained classifier whose features are aligned; it is left as it is")
    lam: float = Field(0.5, ge=0, le=1, description="l, weight of the teacher's image features; its texts get the rest")
    align_epochs: int | None = Field(None, ge=1, description="passes over the data in stage 1; default as many as in stage 2")
    stages: Literal["both", "align"] = Field(
        "both", description="whether the backbone is trained as well, or the projection alone"
    )


class VL2VADiPRecipe(Recipe[ClassifierTarget]):
    """Cosines with the teacher's image features and its texts.

    Args:
        teacher: of features.
        vectors: (K, D) of the class texts, of length 1.
        lam: weight of the former.
        still: the part that stands still, which is kept in evaluation mode.
    """

    def __init__(self, teacher: Teacher, vectors: Tensor, lam: float, still: nn.Module) -> None:
        self.teacher, self.vectors, self.lam, self.still = teacher, vectors, lam, still

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """-l mean cos(., I(x)) - (1 - l) mean cos(., T(y))."""
        self.still.eval()
        features = EncoderTarget(target, unit=False)(batch.x)
        images = F.cosine_similarity(features, self.teacher.clean(batch), dim=1).mean()
        texts = F.cosine_similarity(features, self.vectors[batch.y], dim=1).mean()
        return -self.lam * images - (1 - self.lam) * texts, {"cos_image": images.detach(), "cos_text": texts.detach()}


class VL2VADiP(HeldOutDefense):
    """A trained network in the space of a vision-language teacher."""

    Params = VL2VADiPParams
    source = "Addepalli et al. 2024, arXiv:2310.08255"

    def fit(self, context: FitContext) -> Target:
        """Train the stages; each resumes on its own, and its epoch is chosen by validation accuracy."""
        p, seen = self.params, without_classes(context, self.params.held_out)
        with frozen_towers(seen, p.teacher, p, features=True) as (towers, teacher):
            student = projected(context, finished(context, p.backbone), towers)
            image: Any = student.module.image
            backbone, projection = image[0], image[1]

            def stage(number: int, name: Stage, epochs: int, trained: nn.Module, still: nn.Module) -> None:
                def log(epoch: int, metrics: Mapping[str, float]) -> None:
                    context.log((first if number else 0) + epoch, metrics)

                still.requires_grad_(False)
                trained.requires_grad_()
                own = replace(seen, checkpoints=context.checkpoints / name, log=log)
                recipe = VL2VADiPRecipe(teacher, towers.vectors, p.lam, still)
                train(own, student, recipe, p.model_copy(update={"epochs": epochs}))

            first = p.align_epochs or p.epochs
            stage(0, "align", first, projection, backbone)
            if p.stages == "both":
                stage(1, "distil", p.epochs, backbone, projection)
            return student


def projected(context: FitContext, backbone: ClassifierTarget, towers: TwoTowerTarget) -> TwoTowerTarget:
    """The backbone's features behind a fresh projection into the teacher's space, with the teacher's class vectors.

    Raises:
        TargetError: the backbone has no linear layer.
    """
    widths = last_linear(backbone.module).in_features, towers.dimensions
    with seeded_init(context, "projection"):
        projection = nn.Linear(*widths)
    body: Any = without_head(copy.deepcopy(backbone.module))
    return TwoTowerTarget(
        nn.Sequential(body, projection).to(context.device),
        towers.vectors,
        tower=ImageTower(network=backbone.card(), headless=True, projection=widths),
        input_shape=towers.input_shape,
        scale=float(towers.module.scale),
        classes=towers.classes,
    ).to(context.device)
