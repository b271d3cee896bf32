"""Another head on a trained encoder: the same image tower, compared with other class vectors.

    text         v_k = mean direction of the text tower's vectors of the templates
    prototypes   v_k = mean direction of the encoder's features of up to ``shots`` training images of class k
    probe        min over v   CE( scale * cos(image(x), v_k), y )   over the training images, from the prototypes on

So one encoder has several uses in a campaign, and an attack that was made on it alone can be tried on each of them.

Good to ask whether robustness, or an attack without a head (``adv-encoder``, ``feature-pgd``), belongs to the encoder or to one head. The
encoder is not trained. A head on the same texts is the encoder's own: the control.

From the authors of the heads: zero-shot classification by texts, and by class means; the linear probe is that of the downstream tasks of
AdvEncoder (ICCV 2023). From us: that they are exchangeable, so that the probe is one of directions as the others are.

Source: Radford et al.: Learning transferable visual models from natural language supervision (ICML 2021), section 3.1; Snell, Swersky,
Zemel: Prototypical networks for few-shot learning (NIPS 2017), equation 1, with cosines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from robustkd.contracts import Defense, FitContext, Params, Target, TargetRef, UsageError
from robustkd.contracts.params import AddedLater
from robustkd.defenses.image.representations.encoders.class_texts import Templates, class_texts, class_vectors
from robustkd.defenses.image.representations.encoders.towers import ENCODER, two_towers
from robustkd.defenses.training import Minibatch, Recipe, TrainParams
from robustkd.defenses.training.auxiliary import with_auxiliary
from robustkd.defenses.training.stages import Stage, run_stages
from robustkd.lazy import F, nn, torch
from robustkd.targets import ClassifierTarget, frozen
from robustkd.targets.encoder import EncoderTarget
from robustkd.targets.two_tower import TwoTowerTarget

if TYPE_CHECKING:
    from torch import Tensor

_BATCH = 500


class EncoderHeadParams(Params):
    encoder: TargetRef = Field(description=ENCODER)
    head: Literal["text", "prototypes", "probe"] = Field("prototypes", description="where the class vectors come from")
    templates: Templates = ("a photo of a {}",)
    shots: int = Field(50, ge=1, description="of prototypes, training images of each class at most, the first ones")
    epochs: Annotated[int, AddedLater()] = Field(10, ge=1, description="of a probe, passes over the training images")
    lr: Annotated[float, AddedLater()] = Field(0.01, gt=0, description="of a probe (Adam), which falls along a cosine")
    batch_size: Annotated[int, AddedLater()] = Field(128, ge=1, description="of a probe")


class ProbeRecipe(Recipe[ClassifierTarget]):
    """The cross entropy of scaled cosines with the vectors that are learnt.

    Args:
        towers: the encoder, frozen.
    """

    def __init__(self, towers: TwoTowerTarget) -> None:
        self.encoder, self.scale = EncoderTarget(towers), float(towers.module.scale)

    def loss(self, target: Any, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """CE(scale * cos(image(x), v), y)."""
        with torch.no_grad():
            features = self.encoder(batch.x)
        vectors = F.normalize(target.module.parts["head"].weight, dim=1)
        return F.cross_entropy(self.scale * F.linear(features, vectors), batch.y), {}


class EncoderHead(Defense):
    """A trained encoder with other class vectors."""

    Params = EncoderHeadParams
    source = "Radford et al. 2021, arXiv:2103.00020; Snell et al. 2017, arXiv:1703.05175"

    @property
    def reads_class_names(self) -> bool:
        """Where they are put into texts."""
        return self.params.head == "text"

    def fit(self, context: FitContext) -> Target:
        """Make the vectors; the encoder's weights are copied.

        Raises:
            TargetError: the encoder has no text tower, for a head of texts.
            UsageError: a class has no training images, for prototypes.
        """
        p = self.params
        towers = two_towers(context, p.encoder)
        if p.head == "text":
            towers.of_texts([""])  # says so where there is none
            vectors = class_vectors(towers.module.text, class_texts(context), p.templates)
        else:
            vectors = prototypes(context, towers, p.shots)
        if p.head == "probe":
            vectors = self._probed(context, towers, vectors)
        target = towers.with_vectors(vectors, towers.classes)
        target.module.eval()
        return target

    def _probed(self, context: FitContext, towers: TwoTowerTarget, start: Tensor) -> Tensor:
        """(K, D) vectors that have learnt the labels."""
        p = self.params
        head = nn.Linear(start.shape[1], len(start), bias=False)
        with torch.no_grad():
            head.weight.copy_(start)
        settings = TrainParams(
            epochs=p.epochs,
            lr=p.lr,
            batch_size=p.batch_size,
            optimiser="adam",
            schedule="cosine",
            weight_decay=0.0,
            selection="last",
        )
        with frozen(towers.module):
            trained = with_auxiliary(towers, head=head)
            run_stages(context, [Stage("probe", trained, ProbeRecipe(towers), settings, lambda: [head], still=True)])
        return head.weight.detach()


def prototypes(context: FitContext, towers: TwoTowerTarget, shots: int) -> Tensor:
    """(K, D) the mean direction of the features of each class's first images.

    Raises:
        UsageError: a class has no training images.
    """
    labels, found = context.train.labels, []
    encoder = EncoderTarget(towers)
    with frozen(towers.module), torch.no_grad():
        for number in range(context.num_classes):
            rows = np.flatnonzero(labels == number)[:shots]
            if not len(rows):
                raise UsageError(
                    f"class {number} has no training images, so it has no prototype",
                    fix="take a head of texts, or more training data",
                )
            images = torch.from_numpy(context.train.select(rows).unit()).to(context.device)
            found.append(torch.cat([encoder(part) for part in images.split(_BATCH)]).mean(0))
    return F.normalize(torch.stack(found), dim=1)
