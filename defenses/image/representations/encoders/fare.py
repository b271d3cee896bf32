"""FARE: an image encoder whose features stay, in the whole ball, where the trained encoder puts the image.

    x~ = argmax_{x' in ball(x)} ||f(x') - f_0(x)||^2
    min_f  mean ||f(x~) - f_0(x)||^2                      no label, no text

It is robust distillation of features: f_0 is the teacher, and f begins as its copy, or with ``student`` as a fresh network. Since no
class has a part in it, the class vectors of any text go on to fit, and classes that it never saw can be asked about (``held_out``).

Good to make an encoder robust for uses that are not known yet. Against an attack on one known task, training on that task (``tecoa``)
gives more. The control is ``adversarial: false``: the features of the images as they are, which a copy has already.

From the authors: both losses on features of any length, summed over the dimensions, PGD of 10 steps from a uniform start; AdamW with a
rate of 1e-5, weight decay 1e-4, batches of 128. They make 20,000 steps (two epochs of ImageNet) at eps 2/255 and 4/255. From us: a
student of another architecture, and the sizes. No label is read but for the accuracy that is logged; the last epoch is deployed.

Source: Schlarmann et al.: Robust CLIP: unsupervised adversarial fine-tuning of vision embeddings for robust large vision-language models
(ICML 2024), equations 3 and 4; the authors' code chs20/RobustVLM, train/adversarial_training_clip.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from robustkd.attacks.image.engine.feature_losses import squared_distance
from robustkd.contracts import FitContext, ModelName, Target
from robustkd.contracts.params import ModelParams
from robustkd.defenses.image.representations.encoders.held_out import HeldOutDefense, without_classes
from robustkd.defenses.image.representations.encoders.towers import FromEncoderParams, fresh_student, frozen_towers, tuned_copy
from robustkd.defenses.training import Adversary, Minibatch, Recipe, Teacher, TrainedUnderAttack, train
from robustkd.defenses.training.inner import InnerSteps
from robustkd.targets import ClassifierTarget, frozen
from robustkd.targets.encoder import EncoderTarget

if TYPE_CHECKING:
    from torch import Tensor


class FAREParams(FromEncoderParams):
    selection: Literal["best", "weighted", "last"] = Field(
        "last", description="which epoch is deployed; the last, since the others need labels of validation images"
    )
    inner: InnerSteps = Field(default_factory=InnerSteps, description="the examples to train on")
    adversarial: bool = Field(True, description="train on x~; false is the control, x itself")
    student: ModelName | None = Field(
        None, description="the architecture of a fresh image tower; default a copy of the encoder's, in its weights"
    )
    student_params: ModelParams = Field(default_factory=dict)


class FARERecipe(Recipe[ClassifierTarget]):
    """The squared distance of the features at x~ from the teacher's at x.

    Args:
        teacher: of features as they are.
        adversary: the inner maximisation.
        params: the defense's.
    """

    def __init__(self, teacher: Teacher, adversary: Adversary, params: FAREParams) -> None:
        self.teacher, self.adversary, self.params = teacher, adversary, params

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean ||f(x~) - f_0(x)||^2."""
        encoder, wanted = EncoderTarget(target, unit=False), self.teacher.clean(batch)
        x = batch.x
        if self.params.adversarial:
            with frozen(target.module):
                x = self.adversary.climb(batch, encoder, lambda features, rows: squared_distance(features, wanted[rows]))
        return squared_distance(encoder(x), wanted).mean(), {}


class FARE(TrainedUnderAttack, HeldOutDefense):
    """An encoder whose features an attack moves little."""

    Params = FAREParams
    source = "Schlarmann et al. 2024, arXiv:2402.12336"

    def fit(self, context: FitContext) -> Target:
        """Fine-tune a copy of the encoder, or train a student of it."""
        p, seen = self.params, without_classes(context, self.params.held_out)
        adversary = Adversary.under(p.inner, context.threat)
        with frozen_towers(seen, p.encoder, p, features=True) as (towers, teacher):
            fresh = p.student is not None
            trained = fresh_student(context, towers, p.student, p.student_params) if fresh else tuned_copy(towers)
            return train(seen, trained, FARERecipe(teacher, adversary, p), p)
