"""PromptKD: a student that learns the teacher's opinion of all class texts, from images without labels.

    min_S  weight * KL( softmax(scale cos(T(x), v) / tau)  ||  softmax(scale cos(S(x), v) / tau) )        v: the teacher's class vectors

The teacher's texts are read once, and the student is compared with their vectors as the teacher is. So it answers for any class that
there is a text for, also for those of which it saw no image (``held_out``).

Good as the control of what distils robustness: it sees clean images alone. The control of its teacher is a student of the same loss
whose teacher is not robust.

From the authors: the loss, its mean over batch and classes times 1,000, tau 1, SGD with 0.005 and a cosine, batches of 8, 20 epochs. From
us: the whole image tower is trained; theirs is a frozen CLIP with learnt prompts (4 + 4 tokens in 9 layers) and a projector to the
teacher's width. Theirs sees unlabelled images of the new classes too.

Source: Li et al.: PromptKD: unsupervised prompt distillation for vision-language models (CVPR 2024), section 3; the authors' code
zhengli97/PromptKD, trainers/promptkd.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from robustkd.contracts import FitContext, Target
from robustkd.defenses.image.representations.encoders.held_out import HeldOutDefense, without_classes
from robustkd.defenses.image.representations.encoders.towers import TowerStudentParams, fresh_student, frozen_towers
from robustkd.defenses.training import DistillationRecipe, Minibatch, kl, train
from robustkd.defenses.training.params import BatchSizeParam, EpochsParam, LRParam, ScheduleParam
from robustkd.targets import ClassifierTarget

if TYPE_CHECKING:
    from torch import Tensor


class PromptKDParams(TowerStudentParams):
    epochs: EpochsParam = 20
    batch_size: BatchSizeParam = 8
    lr: LRParam = 0.005
    schedule: ScheduleParam = "cosine"
    selection: Literal["best", "weighted", "last"] = Field(
        "last", description="which epoch is deployed; the last, since the others need labels of validation images"
    )
    temperature: float = Field(1.0, gt=0, description="tau, of teacher and student")
    weight: float = Field(1000.0, gt=0, description="of the divergence, which is a mean over batch and classes")


class PromptKDRecipe(DistillationRecipe):
    """Divergence from the teacher over its class vectors."""

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """weight * KL(T(x) || S(x)) / K."""
        p = self.params
        divergence = kl(
            self.teacher.clean(batch),
            target(batch.x),
            teacher_temperature=p.temperature,
            student_temperature=p.temperature,
            reduction="batch-and-class",
        )
        return p.weight * divergence, {}


class PromptKD(HeldOutDefense):
    """A student of an encoder's answers to unlabelled images."""

    Params = PromptKDParams
    source = "Li et al. 2024, arXiv:2403.02781"

    def fit(self, context: FitContext) -> Target:
        """Distil; the last epoch is deployed."""
        p, seen = self.params, without_classes(context, self.params.held_out)
        with frozen_towers(seen, p.teacher, p) as (towers, teacher):
            return train(seen, fresh_student(context, towers, p.student, p.student_params), PromptKDRecipe(teacher, p), p)
