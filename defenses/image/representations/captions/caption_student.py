"""What students of a caption model share: the teacher, a fresh student, and imitation of the teacher's words.

min_S  mean over images and words of KL( T(. | x, words before) || S(. | x, words before) )
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.contracts import FitContext, ModelName, Target, TargetRef
from robustkd.contracts.params import ModelParams
from robustkd.defenses.image.representations.captions.caption_pretrain import fresh_captioner, own_captions
from robustkd.defenses.image.representations.encoders.held_out import HeldOutDefense, HeldOutParams, without_classes
from robustkd.defenses.training import Minibatch, Recipe
from robustkd.defenses.training.divergence import relative_entropy
from robustkd.defenses.training.stages import Stage, run_stages
from robustkd.lazy import torch
from robustkd.targets import ClassifierTarget, frozen
from robustkd.targets.captioner import CaptionerTarget

if TYPE_CHECKING:
    from torch import Tensor

    from robustkd.targets.caption_modules import Captioner


class CaptionStudentParams(HeldOutParams):
    """What a student of a caption model is like, and how it is trained."""

    teacher: TargetRef = Field(description="the caption model to learn from, a defense of kind caption-pretrain")
    student: ModelName = Field(description="the architecture of the student's image tower: a model plug-in")
    student_params: ModelParams = Field(default_factory=dict)
    dimensions: int = Field(32, ge=2, description="D, of the student's features between the tower and the decoder")
    width: int = Field(32, ge=2, description="of the student's decoder")


class MimicRecipe(Recipe[ClassifierTarget]):
    """Divergence from the teacher, word by word of the right caption."""

    def __init__(self, teacher: Captioner, tones: Tensor) -> None:
        self.teacher, self.tones = teacher, tones

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """mean KL(T || S)."""
        model: Captioner = target.module  # type: ignore[assignment]
        wanted = own_captions(model, batch, self.tones)
        ours = model.steps(model.image(batch.x).flatten(1), wanted).flatten(0, 1).log_softmax(1)
        with torch.no_grad():
            theirs = self.teacher.steps(self.teacher.image(batch.x).flatten(1), wanted).flatten(0, 1).log_softmax(1)
        counts = (wanted != 0).flatten()
        return (relative_entropy(theirs, ours) * counts).sum() / counts.sum(), {}


class CaptionStudent(HeldOutDefense):
    """A student of a caption model. A method says in which stages it learns."""

    reads_texts = True

    @abstractmethod
    def stages(self, seen: FitContext, teacher: CaptionerTarget, student: CaptionerTarget) -> Iterator[Stage]:
        """The trainings in order.

        Args:
            seen: the context without the classes that are held out.
            teacher: frozen, on the device.
            student: fresh.
        """

    def fit(self, context: FitContext) -> Target:
        """Train the stages; each resumes on its own, and its epoch is chosen by the keyword's accuracy on the validation images.

        Raises:
            UsageError: the teacher is no caption model.
        """
        p, seen = self.params, without_classes(context, self.params.held_out)
        teacher = context.target(p.teacher, CaptionerTarget).to(context.device)
        student = fresh_captioner(context, p.student, p.student_params, p.dimensions, p.width)
        with frozen(teacher.module):
            run_stages(seen, self.stages(seen, teacher, student))
        return student
