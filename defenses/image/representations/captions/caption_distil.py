"""A caption model that is distilled by imitation, then by preference: right captions over wrong ones, with the teacher as the reference.

    stage 1, mimic       min_S  mean over images and words of KL( T(. | x, words before) || S(. | x, words before) )
    stage 2, preference  min_S  -mean log sigmoid( beta [ (log S(c+ | x) - log T(c+ | x)) - (log S(c- | x) - log T(c- | x)) ] )

c+ is the image's caption, c- one with another class's name or another adjective: a hallucination. In place of the student as it was, the
teacher is the reference, so the student is to prefer right captions by more than its teacher does.

Good for a smaller caption model that is to say less of what is not there. ``preference_epochs: 0`` is the control, imitation alone. Neither
stage sees an adversarial example.

From the authors: both stages and the loss of the second, the teacher as its reference, beta 0.1. From us: a small recurrent model in
the place of a language model, no sparse mixture of experts, whose part of the method is left out, one imitation stage, and wrong
captions that are drawn from the other classes and adjectives.

Source: Shu et al.: LLaVA-MoD: making LLaVA tiny via MoE knowledge distillation (ICLR 2025), arXiv:2408.15881, section 3.3; the authors'
code shufangxun/LLaVA-MoD.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.contracts import FitContext
from robustkd.data.captions import tones_of
from robustkd.defenses.image.representations.captions.caption_pretrain import ADJECTIVES, own_captions
from robustkd.defenses.image.representations.captions.caption_student import CaptionStudent, CaptionStudentParams, MimicRecipe
from robustkd.defenses.training import Minibatch, Recipe
from robustkd.defenses.training.stages import Stage
from robustkd.lazy import F, torch
from robustkd.targets import ClassifierTarget
from robustkd.targets.captioner import CaptionerTarget

if TYPE_CHECKING:
    from torch import Tensor

    from robustkd.targets.caption_modules import Captioner


class CaptionDistilParams(CaptionStudentParams):
    beta: float = Field(0.1, gt=0, description="how sharp the preference is")
    preference_epochs: int = Field(5, ge=0, description="passes over the data in stage 2; 0 is the control, imitation alone")
    preference_lr: float | None = Field(None, gt=0, description="learning rate of stage 2 at its start; default a tenth of lr")


class PreferenceRecipe(Recipe[ClassifierTarget]):
    """Right captions over wrong ones, by more than the teacher."""

    def __init__(self, teacher: Captioner, tones: Tensor, beta: float) -> None:
        self.teacher, self.tones, self.beta = teacher, tones, beta

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The preference loss; logged is how often the student prefers the right caption by itself."""
        model: Captioner = target.module  # type: ignore[assignment]
        right, wrong = own_captions(model, batch, self.tones), wrong_captions(model, batch, self.tones)
        ours = [model.log_likelihood(model.image(batch.x).flatten(1), each) for each in (right, wrong)]
        with torch.no_grad():
            features = self.teacher.image(batch.x).flatten(1)
            theirs = [self.teacher.log_likelihood(features, each) for each in (right, wrong)]
        preferred = (ours[0] > ours[1]).float().mean()
        return preference_loss(ours[0], ours[1], theirs[0], theirs[1], self.beta).mean(), {"preferred": preferred}


def preference_loss(right: Tensor, wrong: Tensor, reference_right: Tensor, reference_wrong: Tensor, beta: float) -> Tensor:
    """(B,) -log sigmoid(beta [(log s+ - log t+) - (log s- - log t-)]) of (B,) log-likelihoods; log 2 where both models agree."""
    return -F.logsigmoid(beta * ((right - reference_right) - (wrong - reference_wrong)))


def wrong_captions(model: Captioner, batch: Minibatch, tones: Tensor) -> Tensor:
    """(B, T) the tokens of a caption with one thing wrong: for half of the images the name, for half the adjective, at random."""
    classes = len(model.tokens)
    drawn = batch.rng("wrong").integers((3,), 1 << 30)
    own = tones.to(batch.y.device)[batch.index]
    name, adjective = drawn[:, 0] % 2 == 0, drawn[:, 0] % 2 == 1
    labels = (batch.y + name * (1 + drawn[:, 1] % (classes - 1))) % classes
    return model.tokens[labels, (own + adjective * (1 + drawn[:, 2] % (len(ADJECTIVES) - 1))) % len(ADJECTIVES)]


class CaptionDistil(CaptionStudent):
    """A student of a caption model's words, then of right captions over wrong ones."""

    Params = CaptionDistilParams
    source = "Shu et al. 2025, arXiv:2408.15881"

    def stages(self, seen: FitContext, teacher: CaptionerTarget, student: CaptionerTarget) -> Iterator[Stage]:
        """See ``CaptionStudent.stages``: imitation, then preference."""
        p, tones = self.params, torch.from_numpy(tones_of(seen.train.unit()))
        yield Stage("mimic", student, MimicRecipe(teacher.module, tones), p)
        if p.preference_epochs:
            lr = p.preference_lr if p.preference_lr is not None else (None if p.lr is None else p.lr / 10)
            settings = p.model_copy(update={"epochs": p.preference_epochs, "lr": lr})
            yield Stage("preference", student, PreferenceRecipe(teacher.module, tones, p.beta), settings)
