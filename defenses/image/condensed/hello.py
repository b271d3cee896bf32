"""HeLlO: a small projector gives the soft labels of a distilled set, in the place of a store of them.

    projector = an encoder whose weights W become W + A B  (A: out x r, B: r x in)  and a linear head of its own
    min over A, B, head:   tau^2 KL( T(x; tau) || P(x; tau) )    on the real data

A training on a condensed set then names the projector as its ``teacher``: it is asked about whatever augmented image is shown. What must be
kept beside the images is A, B and the head, whose number is reported, instead of the answers to every crop.

From the authors: a frozen pre-trained encoder, low-rank updates and a linear head fitted to the teacher, as an online source of labels.
From us: the encoder is a model of the campaign in the place of CLIP's image tower, so that its head begins with that model's own and not
with a text embedding; and the images are not updated afterwards to lower the projector's error.

Control: ``rank: 0``, a head on the encoder as it is; and the teacher itself as the teacher.

Source: Yu et al.: Heavy labels out! Dataset distillation with label space lightening (HeLlO, 2024), arXiv:2408.08201; read in the abstract
only.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.contracts import Defense, FitContext, Target, TargetRef
from robustkd.defenses.training import Minibatch, Teacher, TrainParams, frozen_teacher, kl, teacher, train
from robustkd.defenses.training.distillation import DistillationRecipe
from robustkd.defenses.training.networks import seeded_init
from robustkd.targets import ClassifierTarget
from robustkd.targets.activations import last_linear

if TYPE_CHECKING:
    from torch import Tensor


class HeLlOParams(TrainParams):
    teacher: TargetRef = Field(description="the defense whose model's answers are to be given")
    encoder: TargetRef = Field(description="the defense whose model is frozen, and updated by low-rank matrices")
    rank: int = Field(4, ge=0, description="r of the updates; 0 for a head alone")
    temperature: float = Field(1.0, gt=0, description="tau, of teacher and projector")


class HeLlORecipe(DistillationRecipe):
    """The divergence from the teacher on clean images."""

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """tau^2 * KL(T(x; tau) || P(x; tau))."""
        tau = self.params.temperature
        soft = kl(
            self.teacher.clean(batch), target(batch.x), teacher_temperature=tau, student_temperature=tau, reduction="batch"
        )
        return tau**2 * soft, {"loss_soft": soft}


class HeLlO(Defense):
    """A projector that answers as its teacher does, and is small to keep."""

    Params = HeLlOParams
    source = "Yu et al. 2024, arXiv:2408.08201"

    def fit(self, context: FitContext) -> Target:
        """Fit the updates and the head; the epoch is chosen on the validation data."""
        from robustkd.defenses.training.modules import LowRank  # late: it imports torch

        p = self.params
        projector = copy.deepcopy(teacher(context, p.encoder))
        with frozen_teacher(context, p.teacher, p) as answering, seeded_init(context, "projector"):
            module = LowRank(projector.module, last_linear(projector.module), p.rank).to(context.device)
            target = ClassifierTarget(
                module, num_classes=projector.num_classes, input_shape=projector.input_shape, bounds=projector.bounds
            )
            self._train(context, answering, target)
        module.bake()
        projector.module.eval()
        return projector

    def _train(self, context: FitContext, answering: Teacher, target: ClassifierTarget) -> None:
        kept = sum(weight.numel() for weight in target.module.parameters() if weight.requires_grad)

        def log(epoch: int, metrics: dict[str, float]) -> None:
            context.log(epoch, {**metrics, "kept_numbers": float(kept)})

        train(FitContext(**{**vars(context), "log": log}), target, HeLlORecipe(answering, self.params), self.params)
